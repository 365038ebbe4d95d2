"""Which layers to keep: one small file a strategy, one interface for all of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, runtime_checkable

from ulskip_cli.strategies.exit_rule import ExitRule
from ulskip_cli.strategies.schedule import Stage


class Strategy(Protocol):
    """A policy that decides, from integers alone, which layers a decode step runs."""

    follows_ratio: ClassVar[bool]
    """Whether the asked-for speedup decides how many layers are kept."""

    def num_kept(self, num_layers: int, target_speedup: float) -> int:
        """How many layers a target speedup leaves when it means a share of the layers."""

    def kept_layers(self, num_layers: int, num_kept: int) -> tuple[int, ...]:
        """The layers to run, ascending."""


@runtime_checkable
class PositionalStrategy(Protocol):
    """A strategy whose depth depends on the position."""

    def stages(self, num_layers: int, num_kept: int, lengths: Sequence[int]) -> tuple[Stage, ...]:
        """The layers of every stretch of decode steps, of which `num_kept` run on average.

        Args:
            num_layers: N, the decoder layers of the full model.
            num_kept: R, the count of the static strategies.
            lengths: tokens of typical outputs, for a strategy that was not calibrated.
        """


@runtime_checkable
class EarlyExitStrategy(Protocol):
    """A strategy whose depth depends on the token."""

    def exit_rule(self, num_layers: int, num_kept: int, max_new_tokens: int) -> ExitRule:
        """Where a decode step may end, so that `num_kept` layers run on average.

        Args:
            num_layers: N, the decoder layers of the full model.
            num_kept: R, the count of the static strategies.
            max_new_tokens: the most tokens of an output.
        """


class HeldOutMeasurements(Protocol):
    """A model on held-out examples, as a strategy measures it before it decides anything."""

    def output_lengths(self) -> list[int]:
        """Tokens of the full model's answer to each example."""

    def block_influence(self) -> list[float]:
        """Of every layer: one minus the mean cosine of the hidden states before and after it."""

    def decode_loss(self, kept_layers: Sequence[int]) -> float:
        """Mean cross-entropy of the references when decode steps run these layers, in nats a token."""

    def mean_depth(self, options: Mapping[str, Any]) -> float:
        """Layers that ran in a decode step, on average over the answers under these options of the strategy."""

    def tell(self, done: int, total: int) -> None:
        """Show how far a long calibration is."""


@dataclass(frozen=True)
class CalibrationResult:
    """What a calibration leaves.

    Attributes:
        options: values of the strategy's own options; with them it is calibrated.
        notes: what a reader should know about how they were found.
    """

    options: dict[str, Any]
    notes: dict[str, Any] = field(default_factory=dict)


@runtime_checkable
class NeedsCalibration(Protocol):
    """A strategy some of whose options are measured on held-out examples before a run, unless they are given."""

    calibrated_for: ClassVar[tuple[str, ...]]
    """What a calibration holds for, beside model and examples: `num_kept`, `decoding`, `batch_size`."""

    stand_in: ClassVar[str]
    """What is planned where nothing was measured."""

    @property
    def is_calibrated(self) -> bool:
        """Whether these options have values."""

    def calibrate(self, num_layers: int, num_kept: int, held_out: HeldOutMeasurements) -> CalibrationResult:
        """Measure what the options should be."""
