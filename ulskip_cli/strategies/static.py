"""Strategies whose layers are known from integers alone: the full model, unified skipping, and the
two simple baselines.
"""

from typing import Literal

from ulskip_cli.core import schedule
from ulskip_cli.core.options import option
from ulskip_cli.core.schedule import Layers
from ulskip_cli.core.strategy import SkippingStrategy, Strategy

SPACINGS = {"even": schedule.even, "reference": schedule.reference}


class Full(Strategy):
    """Keep all layers at every ratio."""

    follows_ratio = False
    keeps_all = True

    def num_kept(self, num_layers: int, target_speedup: float) -> int:
        """Return the number of all layers."""
        return num_layers

    def kept_layers(self, num_layers: int, num_kept: int) -> Layers:
        """Return the layers 0 to N-1."""
        return tuple(range(num_layers))


class Unified(SkippingStrategy):
    """Keep the first, the last and evenly spread layers between them (arXiv:2404.06954)."""

    spacing: Literal["even", "reference"] = option(
        "even", "rounding of layer numbers; even: to the nearest, reference: as in the paper's code"
    )

    def num_kept(self, num_layers: int, target_speedup: float) -> int:
        """Return floor(N / r); `reference` has no tolerance for float division, like the published
        code.
        """
        return schedule.num_kept(
            num_layers, target_speedup, tolerance=0.0 if self.spacing == "reference" else 1e-9
        )

    def kept_layers(self, num_layers: int, num_kept: int) -> Layers:
        """Return both ends and evenly spread layers between them."""
        return SPACINGS[self.spacing](num_layers, num_kept)


class TopSkip(SkippingStrategy):
    """Keep the first R layers, a static early exit (a baseline of arXiv:2404.06954)."""

    def kept_layers(self, num_layers: int, num_kept: int) -> Layers:
        """Return the first R layers."""
        return tuple(range(num_kept))


class BottomSkip(SkippingStrategy):
    """Keep the last R layers (a baseline of arXiv:2404.06954)."""

    def kept_layers(self, num_layers: int, num_kept: int) -> Layers:
        """Return the last R layers."""
        return tuple(range(num_layers - num_kept, num_layers))
