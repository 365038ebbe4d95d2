"""Strategies, which choose the layers of a decode step from integers, without torch.

Each strategy is one small module; the protocols below define its interface. This package imports only `core`.
Start with `schedule.py` (layers as tuples of integers) and `top_skip.py` (the smallest strategy), then read `plan.py`,
which turns a configuration and a model's metadata into a `Plan`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, runtime_checkable

from ulskip_cli.strategies.exit_rule import ExitRule
from ulskip_cli.strategies.schedule import Stage


class Strategy(Protocol):
    """Policy that chooses the layers of a decode step, as a function of integers only."""

    follows_ratio: ClassVar[bool]  # the ratio decides the number of kept layers

    def num_kept(self, num_layers: int, target_speedup: float) -> int:
        """Return R, the number of layers that a target speedup leaves under ratio_basis=layers."""

    def kept_layers(self, num_layers: int, num_kept: int) -> tuple[int, ...]:
        """Return the layers to run, ascending."""


@runtime_checkable
class PositionalStrategy(Protocol):
    """Strategy that runs fewer layers at later decode steps."""

    def stages(self, num_layers: int, num_kept: int, lengths: Sequence[int]) -> tuple[Stage, ...]:
        """Return stages of decoding that run `num_kept` layers per step on average, over outputs of `lengths` tokens."""


@runtime_checkable
class EarlyExitStrategy(Protocol):
    """Strategy that ends a decode step early when the model is confident of the token."""

    def exit_rule(self, num_layers: int, num_kept: int, max_new_tokens: int) -> ExitRule:
        """Return the rule that ends steps early, so that a step runs `num_kept` layers on average."""


class HeldOutMeasurements(Protocol):
    """Measurements of a model on held-out examples, which a calibration can request."""

    def output_lengths(self) -> list[int]:
        """Return the number of tokens of the full model's answer to each example."""

    def block_influence(self) -> list[float]:
        """Return for each layer one minus the mean cosine of the hidden states before and after it."""

    def decode_loss(self, kept_layers: Sequence[int]) -> float:
        """Return the mean cross-entropy of the references in nats per token if decode steps run these layers."""

    def patched_decode_loss(self, kept_layers: Sequence[int]) -> float:
        """Return the decode loss with patches at the gaps, fitted on examples that the loss does not use."""

    def mean_depth(self, options: Mapping[str, Any]) -> float:
        """Generate answers with these strategy options and return the mean number of layers per decode step."""

    def tell(self, done: int, total: int) -> None:
        """Report the progress of a long calibration."""


@dataclass(frozen=True)
class CalibrationResult:
    """Option values that a calibration found, and its details for the row."""

    options: dict[str, Any]  # values for the calibrated options
    notes: dict[str, Any] = field(default_factory=dict)  # details for the row


@runtime_checkable
class NeedsCalibration(Protocol):
    """Strategy with options that a run measures on held-out examples, unless the configuration sets them."""

    # Further conditions that a calibration depends on, in addition to model and examples: `num_kept`, `decoding`, `batch_size`.
    calibrated_for: ClassVar[tuple[str, ...]]
    stand_in: ClassVar[str]  # the schedule that a plan shows before calibration

    @property
    def is_calibrated(self) -> bool:
        """True if the calibrated options have values."""

    def calibrate(self, num_layers: int, num_kept: int, held_out: HeldOutMeasurements) -> CalibrationResult:
        """Measure values for the strategy's options on held-out examples."""
