"""The unified schedule of arXiv:2404.06954: the ends and evenly spread layers between them."""

from dataclasses import dataclass
from typing import ClassVar

from ulskip_cli.core.errors import require_choice
from ulskip_cli.strategies import schedule

SPACINGS = {"even": schedule.even, "reference": schedule.reference}


@dataclass(frozen=True)
class Unified:
    """Keep R layers at equal distances; `spacing` says how distances that are no integers are rounded."""

    spacing: str = "even"
    follows_ratio: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse a spacing that does not exist."""
        require_choice("strategy.spacing", self.spacing, SPACINGS)

    def num_kept(self, num_layers: int, target_speedup: float) -> int:
        """floor(N / r); the published code divides floats and forgives nothing."""
        return schedule.num_kept(num_layers, target_speedup, tolerance=0.0 if self.spacing == "reference" else 1e-9)

    def kept_layers(self, num_layers: int, num_kept: int) -> tuple[int, ...]:
        """The ends and evenly spread layers between them."""
        return SPACINGS[self.spacing](num_layers, num_kept)
