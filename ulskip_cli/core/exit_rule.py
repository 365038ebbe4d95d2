"""The exit rule of CALM (Schuster et al. 2022, arXiv:2207.07061): the depths and the confidence at
which a token may exit.
"""

import math
from dataclasses import dataclass
from typing import Literal

from ulskip_cli.core.errors import UsageError

Confidence = Literal["softmax_diff", "softmax_max", "cosine"]
Batch = Literal["min", "na"]
FALLS_TO = (
    0.9  # the threshold decays from lam to 0.9 lam; lam may exceed 1 so that 0.9 lam can be 1
)
MISSING_KV = "recompute"  # how the layers above an exit get the keys and values of its token


@dataclass(frozen=True)
class ExitRule:
    """Depths (numbers of layers) at which a decode step may end, and the confidence at which a step
    ends there.
    """

    num_layers: int  # N, the depth of a step that never exits
    target_depth: int  # R, for the mean depth over decode steps
    confidence: Confidence
    threshold: float | None  # lam; None before calibration
    horizon: int  # T, steps over which the threshold decays
    min_exit: int = 1  # smallest depth with a check
    every: int = 1  # number of layers between two checks
    batch: Batch = "min"

    def __post_init__(self) -> None:
        if self.least_depth > self.target_depth:
            raise UsageError(
                f"expected a first exit after at most {self.target_depth} of {self.num_layers}"
                f" layers (with strategy.confidence=cosine, at the second check), got"
                f" {self.least_depth}; lower strategy.min_exit, strategy.every"
                " or the ratio"
            )

    @property
    def checks(self) -> tuple[int, ...]:
        """Depths at which a step checks its confidence; there is no check at full depth.

        >>> ExitRule(12, 6, "softmax_max", None, 64, min_exit=3, every=4).checks
        (3, 7, 11)
        """
        return tuple(range(self.min_exit, self.num_layers, self.every))

    @property
    def least_depth(self) -> int:
        """Smallest depth at which a step can end."""
        return min(
            self.num_layers, self.min_exit + (self.every if self.confidence == "cosine" else 0)
        )

    def threshold_at(self, step: int) -> float:
        """Return 0.9 lam + 0.1 lam exp(-4 t / T) at step t (arXiv:2207.07061); step 0 generates the
        second token.
        """
        assert self.threshold is not None, "the threshold is not calibrated"
        return FALLS_TO * self.threshold + (1 - FALLS_TO) * self.threshold * math.exp(
            -4 * step / self.horizon
        )

    def heads(self, depth: int) -> int:
        """Return how often a step of this depth runs the output head: at each check and at full
        depth, once for cosine.
        """
        if self.confidence == "cosine":
            return 1
        checked = sum(check <= depth for check in self.checks)
        return max(1, checked + (depth == self.num_layers))
