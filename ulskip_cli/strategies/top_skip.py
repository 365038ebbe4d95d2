"""Top skipping, a static early exit: keep the first layers (a baseline of arXiv:2404.06954)."""

from dataclasses import dataclass
from typing import ClassVar

from ulskip_cli.strategies import schedule


@dataclass(frozen=True)
class TopSkip:
    """Keep the first R layers."""

    follows_ratio: ClassVar[bool] = True

    def num_kept(self, num_layers: int, target_speedup: float) -> int:
        """Return floor(N / r)."""
        return schedule.num_kept(num_layers, target_speedup)

    def kept_layers(self, num_layers: int, num_kept: int) -> tuple[int, ...]:
        """Return the layers 0 to R-1."""
        return schedule.first(num_layers, num_kept)
