"""SkipDecode (Del Corro et al. 2023): the depth depends only on the position and decreases as the
text grows.

The formula is reconstructed from the paper's description. At decode step t, `a(t) = round(max -
(max - min) min(t / T, 1))` layers run: the first w and the last a(t) - w. T is
the `horizon`. A layer that runs at a step ran at every earlier step, so that no keys and values are
missing.
"""

from dataclasses import replace

from ulskip_cli.core import schedule
from ulskip_cli.core.options import option
from ulskip_cli.core.schedule import Layers, Stage
from ulskip_cli.core.strategy import (
    CalibrationResult,
    HeldOutMeasurements,
    ScheduleRequest,
    Strategy,
)

MAX_HORIZON = 100_000  # steps
WARMUP_LAYERS = 1  # w; they run in every step


class SkipDecode(Strategy):
    """Keep fewer layers at later positions, and R layers on average."""

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
        """Return the layers of the first decode step, which runs the most layers."""
        most, _ = self.depths(request.num_layers, request.num_kept)
        return self._active(request.num_layers, most)

    def stages(self, request: ScheduleRequest) -> tuple[Stage, ...]:
        """Return one stage for each depth, the deepest first."""
        horizon = self.horizon or self.horizon_for(request)[0]
        return self._stages(request.num_layers, request.num_kept, horizon)

    def calibrate(
        self, request: ScheduleRequest, held_out: HeldOutMeasurements
    ) -> CalibrationResult:
        """Find the T at which the held-out answers run R layers per step on average."""
        lengths = held_out.output_lengths()
        horizon, mean = self.horizon_for(replace(request, lengths=tuple(lengths)))
        return CalibrationResult(
            {"horizon": horizon},
            {"mean_kept_layers": mean, "mean_output_tokens": sum(lengths) / len(lengths)},
        )

    def depths(self, num_layers: int, num_kept: int) -> tuple[int, int]:
        """Return the largest and the smallest number of layers of a step; R lies halfway between
        them.

        >>> SkipDecode().depths(12, 6), SkipDecode().depths(12, 2), SkipDecode().depths(12, 12)
        ((8, 4), (2, 2), (12, 12))
        """
        most = min(num_layers, round(4 * num_kept / 3))
        fewest = max(2 * num_kept - most, WARMUP_LAYERS + 1)
        return min(most, 2 * num_kept - fewest), fewest

    def horizon_for(self, request: ScheduleRequest) -> tuple[float, float]:
        """Find T by bisection; return T and the mean number of layers per step, over answers of the
        requested lengths.
        """
        num_kept, lengths = request.num_kept, request.lengths

        def mean(horizon: float) -> float:
            return schedule.mean_kept(self._stages(request.num_layers, num_kept, horizon), lengths)

        low, high = 0.5, 8.0 * max(lengths)
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (low, middle) if mean(middle) >= num_kept else (middle, high)
        nearest = min(
            (round(low, 4), round(high, 4)), key=lambda horizon: abs(mean(horizon) - num_kept)
        )
        return nearest, mean(nearest)

    def _stages(self, num_layers: int, num_kept: int, horizon: float) -> tuple[Stage, ...]:
        most, fewest = self.depths(num_layers, num_kept)
        stages = [Stage(0, self._active(num_layers, most))]
        step = 0
        while len(stages[-1].kept_layers) > fewest:
            step += 1
            depth = round(most - (most - fewest) * min(step / horizon, 1.0))
            if depth < len(stages[-1].kept_layers):
                stages.append(Stage(step, self._active(num_layers, depth)))
        return tuple(stages)

    def _active(self, num_layers: int, depth: int) -> Layers:
        resume = num_layers - (depth - WARMUP_LAYERS)
        return (*range(WARMUP_LAYERS), *range(resume, num_layers))
