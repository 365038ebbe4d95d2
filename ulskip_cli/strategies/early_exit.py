"""Early exit: each token runs as many layers as make it sure (CALM, Schuster et al. 2022, arXiv:2207.07061)."""

import math
from dataclasses import dataclass
from typing import ClassVar

from ulskip_cli.core.errors import UsageError, require_choice
from ulskip_cli.strategies import CalibrationResult, HeldOutMeasurements, schedule
from ulskip_cli.strategies.exit_rule import BATCHES, CONFIDENCES, FALLS_TO, ExitRule

NEVER = 2.0  # no confidence is above 1
LOGITS = (-8.0, 14.0)  # what lam ends at is looked for between so many units from one half; cosines lie close to 1
ROUNDS = 14
CLOSE = 0.01  # how near the mean has to come to end the search early; 0.02 is what is promised


@dataclass(frozen=True)
class EarlyExit:
    """Leave the layers where the confidence passes a threshold.

    Attributes:
        confidence: what is compared with the threshold: `softmax_diff`, `softmax_max` or `cosine`.
        threshold: lam; None to have it found so that the mean depth is that of the static strategies.
        horizon: T, in tokens; None: the longest output of the calibration set, or decoding's limit without one.
        min_exit: the least number of layers that a token runs.
        every: layers from one check to the next.
        batch: `min`: a batch leaves when its least confident sequence may; `na`: batches are not served.
    """

    confidence: str = "softmax_diff"
    threshold: float | None = None
    horizon: int | None = None
    min_exit: int = 1
    every: int = 1
    batch: str = "min"
    follows_ratio: ClassVar[bool] = True
    calibrated_for: ClassVar[tuple[str, ...]] = ("num_kept", "decoding", "batch_size")
    stand_in: ClassVar[str] = "the mean depth that is aimed at"

    def __post_init__(self) -> None:
        """Refuse options that no rule can have."""
        require_choice("strategy.confidence", self.confidence, CONFIDENCES)
        require_choice("strategy.batch", self.batch, BATCHES)
        for key, value, least in (
            ("threshold", self.threshold, 0),
            ("horizon", self.horizon, 1),
            ("min_exit", self.min_exit, 1),
            ("every", self.every, 1),
        ):
            if value is not None and not value >= least:
                raise UsageError(f"expected strategy.{key} >= {least}, got {value:g}")

    @property
    def is_calibrated(self) -> bool:
        """Whether lam is known."""
        return self.threshold is not None

    def num_kept(self, num_layers: int, target_speedup: float) -> int:
        """floor(N / r), as for every static strategy; here it is the mean that is aimed at."""
        return schedule.num_kept(num_layers, target_speedup)

    def kept_layers(self, num_layers: int, num_kept: int) -> tuple[int, ...]:
        """0 to N-1: any layer may run."""
        return tuple(range(num_layers))

    def exit_rule(self, num_layers: int, num_kept: int, max_new_tokens: int) -> ExitRule:
        """The rule on a model of this depth.

        Args:
            num_layers: N.
            num_kept: R, the mean depth that is aimed at.
            max_new_tokens: T where none is known.

        Raises:
            UsageError: no exit is low enough.
        """
        horizon = self.horizon or max_new_tokens
        options = (self.min_exit, self.every, self.batch)
        return ExitRule(num_layers, num_kept, self.confidence, self.threshold, horizon, *options)

    def calibrate(self, num_layers: int, num_kept: int, held_out: HeldOutMeasurements) -> CalibrationResult:
        """T is the longest of the full model's answers; lam by bisection, over answers under each threshold that is tried."""
        horizon = self.horizon or max(held_out.output_lengths())
        if num_kept == num_layers:
            return CalibrationResult({"threshold": NEVER, "horizon": horizon})
        tried: list[tuple[float, float]] = []
        low, high = LOGITS
        for round_ in range(1, ROUNDS + 1):
            middle = (low + high) / 2
            threshold = float(f"{1 / (1 + math.exp(-middle)) / FALLS_TO:.9g}")
            tried.append((threshold, held_out.mean_depth({"threshold": threshold, "horizon": horizon})))
            held_out.tell(round_, ROUNDS)
            mean = tried[-1][1]
            if abs(mean - num_kept) <= CLOSE * num_kept:
                break
            low, high = (middle, high) if mean < num_kept else (low, middle)
        threshold, mean = min(tried, key=lambda one: abs(one[1] - num_kept))
        return CalibrationResult(
            {"threshold": threshold, "horizon": horizon}, {"mean_kept_layers": mean, "tried": [list(one) for one in tried]}
        )
