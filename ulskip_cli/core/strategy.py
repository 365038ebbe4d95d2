"""The interface of strategies, which choose the layers of a decode step."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from ulskip_cli.core import schedule
from ulskip_cli.core.options import Choice
from ulskip_cli.core.schedule import ExitRule, Layers, Stage

OptionValues = Mapping[str, object]


@dataclass(frozen=True)
class ScheduleRequest:
    """What a strategy knows when it chooses layers."""

    num_layers: int  # N, of the model
    num_kept: int  # R, the mean number of layers per decode step that is asked for
    max_new_tokens: int = 64  # limit of an answer
    lengths: tuple[int, ...] = (32,)  # tokens of typical answers


class HeldOutMeasurements(Protocol):
    """What a calibration can measure on held-out examples."""

    def output_lengths(self) -> list[int]:
        """Return the tokens of the full model's answers."""

    def state_similarity(self) -> list[list[float]]:
        """Return the mean cosine of the hidden states at each pair of depths 0 to N; layer l is
        between the depths l and l + 1.
        """

    def decode_loss(self, kept_layers: Sequence[int]) -> float:
        """Return the mean cross-entropy of the references in nats per token with these layers in
        decode steps.

        With correction=patch, it includes patches that are fitted for these layers on other
        examples.
        """

    def mean_depth(self, options: OptionValues) -> float:
        """Generate answers with these strategy options and return the mean layers per decode
        step.
        """

    @property
    def measures_with_patches(self) -> bool:
        """True if `decode_loss` is measured with patches."""

    def report_progress(self, done: int, total: int) -> None:
        """Report the progress of a long calibration."""


@dataclass(frozen=True)
class CalibrationResult:
    """Option values that a calibration found, and details for the row."""

    options: OptionValues  # values for the calibrated options
    notes: OptionValues = field(default_factory=dict)


class Strategy(Choice):
    """Policy that chooses the layers of a decode step.

    A subclass defines `kept_layers`. It may also define `stages` (layers that depend on the
    position), `exit_rule` (a step ends early if the model is confident), or name options in
    `calibrated` and define `calibrate` (a run measures them).
    """

    follows_ratio: ClassVar[bool] = True  # the ratio decides the number of kept layers
    keeps_all: ClassVar[bool] = False  # the full model, the baseline of all comparisons
    # options that are null by default and that a run measures unless they are set
    calibrated: ClassVar[tuple[str, ...]] = ()
    # Settings besides model, examples and correction on which a calibration depends: fewer settings
    # mean fewer repeated calibrations.
    calibrated_for: ClassVar[tuple[str, ...]] = ("num_kept", "decoding", "batch_size")
    stand_in: ClassVar[str] = ""  # the schedule that a plan shows before calibration
    # what a user can do if answers ran another mean number of layers than asked for
    depth_advice: ClassVar[str] = ""

    @property
    def is_calibrated(self) -> bool:
        """True if every calibrated option has a value."""
        return all(getattr(self, key) is not None for key in self.calibrated)

    @property
    def takes_batches(self) -> bool:
        """True if the strategy allows batches of several sequences."""
        return True

    @property
    def is_positional(self) -> bool:
        """True if the layers depend on the position in the output."""
        return type(self).stages is not Strategy.stages

    @property
    def exits_early(self) -> bool:
        """True if a step can end early."""
        return type(self).exit_rule is not Strategy.exit_rule

    def num_kept(self, num_layers: int, target_speedup: float) -> int:
        """Return R, the number of layers that a ratio leaves."""
        return schedule.num_kept(num_layers, target_speedup)

    @abstractmethod
    def kept_layers(self, request: ScheduleRequest) -> Layers:
        """Return the layers to run, ascending."""

    def stages(self, request: ScheduleRequest) -> tuple[Stage, ...]:
        """Return the stages, which run R layers per step on average."""
        return (Stage(0, self.kept_layers(request)),)

    def exit_rule(self, request: ScheduleRequest) -> ExitRule | None:
        """Return the rule by which a step runs R layers on average; None if no step ends early."""
        return None

    def calibrate(
        self, request: ScheduleRequest, held_out: HeldOutMeasurements
    ) -> CalibrationResult:
        """Measure values for the calibrated options on held-out examples."""
        raise NotImplementedError
