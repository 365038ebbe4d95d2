"""Predict speedups from the bytes of weights, and from step times at several depths."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import linear_regression

from ulskip_cli.core.errors import NotApplicable
from ulskip_cli.core.schedule import MIN_KEPT
from ulskip_cli.core.weight_sizes import WeightSizes

LINE_ERROR = 1.05  # tolerated ratio of measured and fitted latency
# First tokens of the vocabulary that layers draft from; the best of 2048, 4096 and 8192 for
# SmolLM2-135M.
DRAFT_VOCAB = 8192


def num_kept_for_cost(
    weights: WeightSizes, target_speedup: float, speedup: Callable[[int], float]
) -> int:
    """Return the largest number R of kept layers whose predicted `speedup(R)` reaches the target,
    or raise NotApplicable.
    """
    for count in range(len(weights.layers), MIN_KEPT - 1, -1):
        if speedup(count) >= target_speedup - 1e-9:
            return count
    highest = math.floor(100 * speedup(MIN_KEPT)) / 100
    share = weights.head / (weights.head + sum(weights.layers))
    raise NotApplicable(
        f"ratio={target_speedup:g} is out of reach with ratio_basis=cost, because the output head"
        f" and other parts that are never skipped are {share:.0%} of the bytes of a full step; use"
        f" ratio <= {highest:g}"
    )


@dataclass(frozen=True)
class LatencyFit:
    """A straight line fitted to the seconds of a decode step on this machine, by number of
    layers.
    """

    num_layers: int
    fixed_seconds: float  # part of a step that does not depend on its layers: head, embedding, loop
    layer_seconds: float
    step_seconds: Mapping[int, float]  # measured, by number of kept layers

    @classmethod
    def of(cls, num_layers: int, step_seconds: Mapping[int, float]) -> "LatencyFit":
        """Fit the measured seconds by least squares; this requires at least two numbers of
        layers.
        """
        slope, intercept = linear_regression(list(step_seconds), list(step_seconds.values()))
        return cls(num_layers, intercept, slope, dict(step_seconds))

    def share(self, depth: float) -> float:
        """Return the time of a step with `depth` layers, divided by the time of a full step."""
        return self._at(depth) / self._at(self.num_layers)

    def depth(self, target_speedup: float, offset: float = 0.0) -> float:
        """Return the number of layers, from 2 to N, that reaches a speedup; `LatencyTargetFit`
        defines `offset`.
        """
        full = self._at(self.num_layers)
        depth = ((1 / target_speedup - offset) * full - self.fixed_seconds) / self.layer_seconds
        return min(float(self.num_layers), max(float(MIN_KEPT), depth))

    def check(self, target_speedup: float) -> None:
        """Raise NotApplicable if two layers per step are too slow for the target."""
        highest = 1 / self.share(MIN_KEPT)
        if target_speedup > highest * LINE_ERROR:
            raise NotApplicable(
                f"ratio={target_speedup:g} is out of reach with ratio_basis=latency, because"
                f" {self.share(0):.0%} of the time of a full step does not depend on its layers;"
                f" use ratio <= {highest:.2f}"
            )

    def _at(self, count: float) -> float:
        return max(1e-12, self.fixed_seconds + self.layer_seconds * count)
