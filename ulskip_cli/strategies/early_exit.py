"""Early exit: each token runs layers until its confidence is high enough (CALM, Schuster et al.
2022, arXiv:2207.07061).
"""

import math
from typing import Literal

from ulskip_cli.core.errors import NotApplicable, UsageError
from ulskip_cli.core.options import option
from ulskip_cli.core.schedule import FALLS_TO, ExitRule, Layers
from ulskip_cli.core.strategy import (
    CalibrationResult,
    HeldOutMeasurements,
    ScheduleRequest,
    Strategy,
)

NEVER = 2.0  # no confidence is above 1
LOGITS = (-8.0, 14.0)  # search interval of logit(0.9 lam)
ROUNDS = 14
TOLERANCE = 0.01  # relative error of the mean depth that ends the search; 0.02 is documented


class EarlyExit(Strategy):
    """End a step at the first check whose confidence passes a threshold, lam, which decays over a
    horizon of T steps.
    """

    threshold: float | None = option(
        None, "confidence at which a token exits; null: the run calibrates it", ge=0
    )
    horizon: int | None = option(
        None,
        "decode steps over which the threshold decays by a tenth; null: longest held-out answer"
        " in a calibration, else max_new_tokens",
        ge=1,
    )
    min_exit: int = option(1, "minimum number of layers that a token runs", ge=1)
    every: int = option(1, "number of layers between two confidence checks", ge=1)
    batch: Literal["min", "na"] = option(
        "min", "min: a batch exits when its least confident sequence does; na: batch size 1 only"
    )
    calibrated = ("threshold",)
    stand_in = "the target depth"
    depth_advice = "change strategy.threshold or raise calibration.examples"

    def kept_layers(self, request: ScheduleRequest) -> Layers:
        """Return the layers 0 to N-1, because any of them may run."""
        return tuple(range(request.num_layers))

    def exit_rule(self, request: ScheduleRequest) -> ExitRule:
        """Return the exit rule for a model of this depth; T is the limit of an answer if the
        strategy has no horizon.
        """
        if self.batch == "na" and request.batch_size > 1:
            raise NotApplicable(
                f"expected batch_size=1 with strategy.batch=na, got {request.batch_size}; set"
                " batch_size=1 or strategy.batch=min"
            )
        highest = min(request.num_kept, request.num_layers - 1)
        if self.min_exit > highest:
            raise UsageError(
                f"expected a first exit after at most {highest} of {request.num_layers} layers, got"
                f" {self.min_exit}; lower strategy.min_exit or the ratio"
            )
        return ExitRule(
            request.num_layers,
            request.num_kept,
            self.threshold,
            self.horizon or request.max_new_tokens,
            self.min_exit,
            self.every,
        )

    def calibrate(
        self, request: ScheduleRequest, held_out: HeldOutMeasurements
    ) -> CalibrationResult:
        """Set T to the full model's longest answer in tokens, and find lam by bisection on the mean
        depth of answers.
        """
        horizon = self.horizon or max(held_out.output_lengths())
        num_kept = request.num_kept
        if num_kept == request.num_layers:
            return CalibrationResult({"threshold": NEVER, "horizon": horizon})
        tried: list[tuple[float, float]] = []
        low, high = LOGITS
        for round_ in range(1, ROUNDS + 1):
            middle = (low + high) / 2
            threshold = float(f"{1 / (1 + math.exp(-middle)) / FALLS_TO:.9g}")
            mean = held_out.mean_depth({"threshold": threshold, "horizon": horizon})
            tried.append((threshold, mean))
            held_out.tell(round_, ROUNDS)
            if abs(mean - num_kept) <= TOLERANCE * num_kept:
                break
            low, high = (middle, high) if mean < num_kept else (low, middle)
        threshold, mean = min(tried, key=lambda pair: abs(pair[1] - num_kept))
        return CalibrationResult(
            {"threshold": threshold, "horizon": horizon},
            {"mean_kept_layers": mean, "tried": [list(pair) for pair in tried]},
        )
