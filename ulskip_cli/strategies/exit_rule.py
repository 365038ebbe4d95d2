"""When a token leaves the layers early: the rule of CALM (Schuster et al. 2022, arXiv:2207.07061). Imports no torch."""

import math
from dataclasses import dataclass

from ulskip_cli.core.errors import UsageError

CONFIDENCES = ("softmax_diff", "softmax_max", "cosine")
BATCHES = ("min", "na")
FALLS_TO = 0.9  # of lam, which may be above 1: a threshold of 1 to the end has a lam of 1 / 0.9
MISSING_KV = "recompute"  # how the layers above an exit get the keys that a later token looks for


@dataclass(frozen=True)
class ExitRule:
    """Where a decode step may end, and how sure it must be to.

    A depth is a number of layers: a step that ends at depth 3 has run layers 0 to 2.

    Attributes:
        num_layers: N; a step that is never sure runs all of them.
        target_depth: R, what the mean depth over decode steps should be.
        confidence: one of CONFIDENCES.
        threshold: lam; None before it is calibrated.
        horizon: T, the step by which the threshold has fallen to its end.
        min_exit: the least depth that is checked.
        every: a check in so many layers.
        batch: one of BATCHES.
    """

    num_layers: int
    target_depth: int
    confidence: str
    threshold: float | None
    horizon: int
    min_exit: int = 1
    every: int = 1
    batch: str = "min"

    def __post_init__(self) -> None:
        """Refuse a target that lies above every exit.

        Raises:
            UsageError: no step can be that short.
        """
        if self.least_depth > self.target_depth:
            second = f" (cosine has no value at the first check, of {self.min_exit})" if self.confidence == "cosine" else ""
            raise UsageError(
                f"expected exits at {self.target_depth} of {self.num_layers} layers or fewer, got {self.least_depth} at "
                f"least{second}; lower strategy.min_exit or strategy.every, or the ratio"
            )

    @property
    def checks(self) -> tuple[int, ...]:
        """The depths that are checked; behind the last layer there is nothing to decide.

        >>> ExitRule(12, 6, "softmax_max", None, 64, min_exit=3, every=4).checks
        (3, 7, 11)
        """
        return tuple(range(self.min_exit, self.num_layers, self.every))

    @property
    def least_depth(self) -> int:
        """Where a step ends that is sure at once."""
        return min(self.num_layers, self.min_exit + (self.every if self.confidence == "cosine" else 0))

    def threshold_at(self, step: int) -> float:
        """What a confidence must reach at a decode step: 0.9 lam + 0.1 lam exp(-4 t / T) (arXiv:2207.07061).

        Args:
            step: t, 0 for the step that makes the second token.
        """
        assert self.threshold is not None, "calibrate first"
        return decayed(self.threshold, step, self.horizon)

    def heads(self, depth: int) -> int:
        """How often a step of that depth runs the output head: at every check, and at the end where that is none.

        >>> rule = ExitRule(12, 6, "softmax_max", None, 64, min_exit=2, every=2)
        >>> rule.heads(6), rule.heads(12), ExitRule(12, 6, "cosine", None, 64).heads(6)
        (3, 6, 1)
        """
        if self.confidence == "cosine":
            return 1
        checked = sum(check <= depth for check in self.checks)
        return max(1, checked + (depth == self.num_layers))


def decayed(threshold: float, step: int, horizon: int) -> float:
    """A threshold that falls by a tenth from the first step to the horizon.

    >>> round(decayed(0.5, 0, 10), 3), round(decayed(0.5, 10, 10), 3)
    (0.5, 0.451)
    """
    return FALLS_TO * threshold + (1 - FALLS_TO) * threshold * math.exp(-4 * step / horizon)
