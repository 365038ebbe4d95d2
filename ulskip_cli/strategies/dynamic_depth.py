"""Strategies whose depth depends on the position in the output or on the model's confidence."""

import math
from dataclasses import replace
from typing import Literal

from ulskip_cli.core import schedule
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.options import option
from ulskip_cli.core.schedule import FALLS_TO, ExitRule, Layers, Stage
from ulskip_cli.core.strategy import (
    CalibrationResult,
    HeldOutMeasurements,
    ScheduleRequest,
    Strategy,
)
from ulskip_cli.strategies.search import without_block

MAX_HORIZON = 100_000  # steps
WARMUP_LAYERS = 1  # w; they run in every step
NEVER = 2.0  # no confidence is above 1
LOGITS = (-8.0, 14.0)  # search interval of logit(0.9 lam)
ROUNDS = 14
MEAN_DEPTH_ERROR = 0.01  # relative error of the mean depth that ends the search


class SkipDecode(Strategy):
    """Keep fewer layers at later positions, and R on average (SkipDecode, Del Corro et al. 2023). A
    layer of a step ran at every earlier step, so that no keys and values are missing.

    The formula is reconstructed from the paper's description. At decode step t,
    `a(t) = round(most - (most - fewest) min(t / T, 1))` layers run: the first w and the last
    a(t) - w. T is the `horizon`.
    """

    horizon: float | None = option(
        None,
        "decode step from which the fewest layers run; null: the run calibrates it",
        gt=0,
        le=MAX_HORIZON,
    )
    calibrated = ("horizon",)
    calibrated_for = ("num_kept", "decoding")
    stand_in = "a horizon for answers of speed.new_tokens"
    depth_advice = (
        "the answers differ in length from those of the calibration; set strategy.horizon or raise"
        " calibration.examples"
    )

    def kept_layers(self, request: ScheduleRequest) -> Layers:
        """Return the layers of the first step, the most."""
        return self.stages(request)[0].kept_layers

    def stages(self, request: ScheduleRequest) -> tuple[Stage, ...]:
        """Return one stage for each depth."""
        return self._stages(request, self.horizon or self.horizon_for(request)[0])

    def calibrate(
        self, request: ScheduleRequest, held_out: HeldOutMeasurements
    ) -> CalibrationResult:
        """Find the T at which held-out answers run R layers per step on average."""
        lengths = held_out.output_lengths()
        horizon, mean = self.horizon_for(replace(request, lengths=tuple(lengths)))
        return CalibrationResult(
            {"horizon": horizon},
            {"mean_kept_layers": mean, "mean_output_tokens": sum(lengths) / len(lengths)},
        )

    def depths(self, num_layers: int, num_kept: int) -> tuple[int, int]:
        """Return the largest and smallest number of layers of a step. `num_kept` lies halfway
        between; the largest is 4/3 of it, unless the smallest would be too few.

        >>> SkipDecode().depths(12, 6), SkipDecode().depths(12, 2), SkipDecode().depths(12, 12)
        ((8, 4), (2, 2), (12, 12))
        """
        most = min(num_layers, round(4 * num_kept / 3))
        fewest = max(2 * num_kept - most, WARMUP_LAYERS + 1)
        most = min(most, 2 * num_kept - fewest)
        return most, fewest

    def horizon_for(self, request: ScheduleRequest) -> tuple[float, float]:
        """Return T, with four decimals, and the mean layers per step, which grow with T, over
        answers of the requested lengths.
        """

        def mean(horizon: float) -> float:
            return schedule.mean_kept(self._stages(request, horizon), request.lengths)

        # Bisection between two extremes: with 0.5, all steps but the first run the fewest layers;
        # with 8 times the longest answer, all steps run about the most.
        low, high = 0.5, 8.0 * max(request.lengths)
        for _ in range(60):  # to the precision of a float
            middle = (low + high) / 2
            if mean(middle) >= request.num_kept:
                high = middle
            else:
                low = middle
        rounded = round(low, 4), round(high, 4)
        horizon = min(rounded, key=lambda near: abs(mean(near) - request.num_kept))
        return horizon, mean(horizon)

    def _stages(self, request: ScheduleRequest, horizon: float) -> tuple[Stage, ...]:
        """Return a stage for each step up to the horizon at which the depth falls."""
        most, fewest = self.depths(request.num_layers, request.num_kept)
        stages: list[Stage] = []
        for step in range(math.ceil(horizon) + 1):
            depth = round(most - (most - fewest) * min(step / horizon, 1.0))  # a(t)
            if not stages or depth < len(stages[-1].kept_layers):
                # The first w and the last a(t) - w layers remain around a skipped block.
                layers = without_block(request.num_layers, depth, WARMUP_LAYERS)
                stages.append(Stage(step, layers))
        return tuple(stages)


class EarlyExit(Strategy):
    """End a step at the first check whose confidence passes a threshold, which decays over a
    horizon of steps (CALM's lambda and T, Schuster et al. 2022, arXiv:2207.07061).
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
        """Return all layers, because any of them may run."""
        return tuple(range(request.num_layers))

    @property
    def takes_batches(self) -> bool:
        """False with `batch=na`."""
        return self.batch == "min"

    def exit_rule(self, request: ScheduleRequest) -> ExitRule:
        """Return the exit rule; without a horizon, the limit of an answer is one."""
        # A first exit above the mean depth R would make every step deeper than R.
        highest = min(request.num_kept, request.num_layers - 1)
        if self.min_exit > highest:
            raise UsageError(
                f"expected a first exit after at most {highest} of {request.num_layers} layers, got"
                f" {self.min_exit}; lower strategy.min_exit or the ratio"
            )
        return ExitRule(
            num_layers=request.num_layers,
            target_depth=request.num_kept,
            threshold=self.threshold,
            horizon=self.horizon or request.max_new_tokens,
            min_exit=self.min_exit,
            every=self.every,
        )

    def calibrate(
        self, request: ScheduleRequest, held_out: HeldOutMeasurements
    ) -> CalibrationResult:
        """Set the horizon to the full model's longest answer, unless it is given, and find the
        threshold by bisection on the mean depth of answers. The bisection is on the logit scale of
        the threshold of late steps, so that values near 0 and near 1 are told apart.
        """
        horizon = self.horizon or max(held_out.output_lengths())
        num_kept = request.num_kept
        if num_kept == request.num_layers:
            return CalibrationResult({"threshold": NEVER, "horizon": horizon})
        tried: list[tuple[float, float]] = []  # (threshold, mean depth)
        low, high = LOGITS
        for round_ in range(1, ROUNDS + 1):
            logit = (low + high) / 2
            late_threshold = 1 / (1 + math.exp(-logit))  # after the horizon
            threshold = float(f"{late_threshold / FALLS_TO:.9g}")
            depth = held_out.mean_depth({"threshold": threshold, "horizon": horizon})
            tried.append((threshold, depth))
            held_out.report_progress(round_, ROUNDS)
            if abs(depth - num_kept) <= MEAN_DEPTH_ERROR * num_kept:
                break
            if depth < num_kept:
                low = logit
            else:
                high = logit
        threshold, depth = min(tried, key=lambda pair: abs(pair[1] - num_kept))
        return CalibrationResult(
            {"threshold": threshold, "horizon": horizon},
            {"mean_kept_layers": depth, "tried": [list(pair) for pair in tried]},
        )
