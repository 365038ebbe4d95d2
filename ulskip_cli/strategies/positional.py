"""Strategies whose depth decreases with the position in the output. A layer that runs at a step ran
at every earlier step, so that no keys and values are missing.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from ulskip_cli.core import schedule
from ulskip_cli.core.options import option
from ulskip_cli.core.schedule import MIN_KEPT, Layers, Stage
from ulskip_cli.core.strategy import (
    CalibrationResult,
    HeldOutMeasurements,
    ScheduleRequest,
    Strategy,
)
from ulskip_cli.strategies.search import without_block

MAX_HORIZON = 100_000  # steps
WARMUP_LAYERS = 1  # w; they run in every step


class Positional(Strategy):
    """A strategy with stages."""

    def kept_layers(self, request: ScheduleRequest) -> Layers:
        """Return the layers of the first decode step, which runs the most layers."""
        return self.stages(request)[0].kept_layers


class SkipDecode(Positional):
    """Keep fewer layers at later positions, and R layers on average (SkipDecode, Del Corro et al.
    2023).

    The formula is reconstructed from the paper's description. At decode step t, `a(t) = round(max -
    (max - min) min(t / T, 1))` layers run: the first w and the last a(t) - w. T is the `horizon`.
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

    def stages(self, request: ScheduleRequest) -> tuple[Stage, ...]:
        """Return one stage for each depth, the deepest first."""
        return self._stages(request, self.horizon or self.horizon_for(request)[0])

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
        """Return T and the mean number of layers per step over answers of the requested lengths."""

        def mean(horizon: float) -> float:
            return schedule.mean_kept(self._stages(request, horizon), request.lengths)

        horizon = solve(mean, request.num_kept, 0.5, 8.0 * max(request.lengths), digits=4)
        return horizon, mean(horizon)

    def _stages(self, request: ScheduleRequest, horizon: float) -> tuple[Stage, ...]:
        num_layers = request.num_layers
        most, fewest = self.depths(num_layers, request.num_kept)
        shares = (min(step / horizon, 1.0) for step in range(math.ceil(horizon) + 1))
        return decreasing(
            [round(most - (most - fewest) * share) for share in shares],
            lambda depth: without_block(num_layers, depth, WARMUP_LAYERS),
        )


class DepthDecay(Positional):
    """Keep `floor(N a^i)` layers, and at least two, for token i of the output (D3, Fan et al. 2025,
    arXiv:2503.08524): the first and the last ones, without a block around the middle.

    Prefill generates token 0 with all layers. An answer of `decoding.max_new_tokens` runs R layers
    per decode step on average, which decides a. The paper chooses a on validation data, together
    with a position at which the decay starts, and copies keys and values of skipped layers; it
    keeps first and last layers too, but the order in which the others are skipped is ours.
    """

    depth_advice = (
        "shorter answers than decoding.max_new_tokens run more layers, so set it to their length"
    )

    def stages(self, request: ScheduleRequest) -> tuple[Stage, ...]:
        """Return one stage for each depth, the deepest first. The decay a is that with which the
        mean depth over an answer is `request.num_kept`.
        """
        num_layers, tokens = request.num_layers, range(1, max(2, request.max_new_tokens))

        def depths(decay: float) -> list[int]:
            return [max(MIN_KEPT, math.floor(num_layers * decay**token)) for token in tokens]

        def mean(decay: float) -> float:
            return sum(depths(decay)) / len(tokens)

        decay = solve(mean, request.num_kept, 0.0, 1.0, digits=6)
        return decreasing(
            depths(decay), lambda depth: without_block(num_layers, depth, (depth + 1) // 2)
        )


def solve(
    mean: Callable[[float], float], target: float, low: float, high: float, digits: int
) -> float:
    """Return the number with so many digits whose mean depth, which grows with it, is nearest to
    the target.
    """
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if mean(middle) >= target else (middle, high)
    rounded = round(low, digits), round(high, digits)
    return min(rounded, key=lambda number: abs(mean(number) - target))


def decreasing(depths: Sequence[int], layers: Callable[[int], Layers]) -> tuple[Stage, ...]:
    """Return a stage for every decode step that runs fewer layers than the step before.

    >>> decreasing([3, 3, 2], lambda depth: tuple(range(depth)))
    (Stage(first_step=0, kept_layers=(0, 1, 2)), Stage(first_step=2, kept_layers=(0, 1)))
    """
    return tuple(
        Stage(step, layers(depth))
        for step, depth in enumerate(depths)
        if not step or depth < depths[step - 1]
    )
