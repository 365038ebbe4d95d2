"""Early exit: each token runs layers until its confidence is high enough (CALM, Schuster et al. 2022, arXiv:2207.07061)."""

import math
from dataclasses import dataclass
from typing import ClassVar

from ulskip_cli.core.config_schema import option
from ulskip_cli.core.validation import check_fields
from ulskip_cli.strategies import CalibrationResult, HeldOutMeasurements, schedule
from ulskip_cli.strategies.exit_rule import BATCHES, CONFIDENCES, FALLS_TO, ExitRule

NEVER = 2.0  # no confidence is above 1
LOGITS = (-8.0, 14.0)  # search interval of logit(0.9 lam); the upper end is high because cosines are close to 1
ROUNDS = 14
TOLERANCE = 0.01  # relative error of the mean depth that ends the search; 0.02 is documented


@dataclass(frozen=True)
class EarlyExit:
    """End a step at the first check whose confidence passes a threshold, lam, which decays over a horizon of T steps."""

    confidence: str = option(
        "softmax_diff", "gap of the top two probabilities, top probability, or cosine of hidden states", CONFIDENCES
    )
    threshold: float | None = option(None, "confidence at which a token exits; null: the run calibrates it", minimum=0)
    horizon: int | None = option(
        None, "decode steps over which the threshold decays by a tenth; null: longest held-out answer", minimum=1
    )
    min_exit: int = option(1, "minimum number of layers that a token runs", minimum=1)
    every: int = option(1, "number of layers between two confidence checks", minimum=1)
    batch: str = option("min", "min: the least confident sequence decides for its batch; na: batch size 1 only", BATCHES)
    follows_ratio: ClassVar[bool] = True
    calibrated_for: ClassVar[tuple[str, ...]] = ("num_kept", "decoding", "batch_size")
    stand_in: ClassVar[str] = "the target depth"
    num_kept = staticmethod(schedule.num_kept)  # R, the mean number of layers per step

    def __post_init__(self) -> None:
        check_fields(self, "strategy.")

    @property
    def is_calibrated(self) -> bool:
        """True if the threshold lam has a value."""
        return self.threshold is not None

    def kept_layers(self, num_layers: int, num_kept: int) -> tuple[int, ...]:
        """Return the layers 0 to N-1, because any of them may run."""
        return tuple(range(num_layers))

    def exit_rule(self, num_layers: int, num_kept: int, max_new_tokens: int) -> ExitRule:
        """Return the exit rule for a model of this depth; T is `max_new_tokens` if the strategy has no horizon."""
        horizon = self.horizon or max_new_tokens
        options = (self.min_exit, self.every, self.batch)
        return ExitRule(num_layers, num_kept, self.confidence, self.threshold, horizon, *options)

    def calibrate(self, num_layers: int, num_kept: int, held_out: HeldOutMeasurements) -> CalibrationResult:
        """Set T to the full model's longest answer in tokens, and find lam by bisection on the mean depth of answers."""
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
            if abs(mean - num_kept) <= TOLERANCE * num_kept:
                break
            low, high = (middle, high) if mean < num_kept else (low, middle)
        threshold, mean = min(tried, key=lambda one: abs(one[1] - num_kept))
        return CalibrationResult(
            {"threshold": threshold, "horizon": horizon}, {"mean_kept_layers": mean, "tried": [list(one) for one in tried]}
        )
