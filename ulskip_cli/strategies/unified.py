"""The unified schedule of arXiv:2404.06954: keep the first, the last and evenly spread layers between them."""

from dataclasses import dataclass
from typing import ClassVar

from ulskip_cli.core.config_schema import option
from ulskip_cli.strategies import schedule
from ulskip_cli.strategies.patching import SkippingOptions

SPACINGS = {"even": schedule.even, "reference": schedule.reference}


@dataclass(frozen=True)
class Unified(SkippingOptions):
    """Keep R layers at equal distances; `spacing` selects how non-integer distances are rounded."""

    spacing: str = option(
        "even", "rounding of layer numbers; even: to the nearest, reference: as in the paper's code", tuple(SPACINGS)
    )
    follows_ratio: ClassVar[bool] = True

    def num_kept(self, num_layers: int, target_speedup: float) -> int:
        """Return floor(N / r); `reference` has no tolerance for float division, like the published code."""
        return schedule.num_kept(num_layers, target_speedup, tolerance=0.0 if self.spacing == "reference" else 1e-9)

    def kept_layers(self, num_layers: int, num_kept: int) -> tuple[int, ...]:
        """Return both ends and evenly spread layers between them."""
        return SPACINGS[self.spacing](num_layers, num_kept)
