"""Strategies whose layers are known before any weight is read."""

from typing import Literal

from ulskip_cli.core import schedule
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.options import option
from ulskip_cli.core.schedule import Layers
from ulskip_cli.core.strategy import ScheduleRequest, Strategy

SPACINGS = {"even": schedule.even, "reference": schedule.reference}


class KeepAll(Strategy):
    """Keep all layers at every ratio."""

    follows_ratio = False
    keeps_all = True

    def num_kept(self, num_layers: int, target_speedup: float) -> int:
        """Return the number of all layers."""
        return num_layers

    def kept_layers(self, request: ScheduleRequest) -> Layers:
        """Return the layers 0 to N-1."""
        return tuple(range(request.num_layers))


class Unified(Strategy):
    """Keep the first, the last and evenly spread layers between them (arXiv:2404.06954)."""

    spacing: Literal["even", "reference"] = option(
        "even", "rounding of layer numbers; even: to the nearest, reference: as in the paper's code"
    )

    def num_kept(self, num_layers: int, target_speedup: float) -> int:
        """Return floor(N / r); `reference` does not correct rounding errors of the division, like
        the published code.
        """
        return schedule.num_kept(
            num_layers, target_speedup, tolerance=0.0 if self.spacing == "reference" else 1e-9
        )

    def kept_layers(self, request: ScheduleRequest) -> Layers:
        """Return both ends and evenly spread layers."""
        return SPACINGS[self.spacing](request.num_layers, request.num_kept)


class TopSkip(Strategy):
    """Keep the first R layers, a static early exit (a baseline of arXiv:2404.06954)."""

    def kept_layers(self, request: ScheduleRequest) -> Layers:
        """Return the first R layers."""
        return tuple(range(request.num_kept))


class BottomSkip(Strategy):
    """Keep the last R layers (a baseline of arXiv:2404.06954)."""

    def kept_layers(self, request: ScheduleRequest) -> Layers:
        """Return the last R layers."""
        return tuple(range(request.num_layers - request.num_kept, request.num_layers))


class Custom(Strategy):
    """Keep exactly the listed layers, or all but the listed ones."""

    layers: Layers = option((), "layers to keep, ascending numbers from 0")
    skip: Layers = option((), "layers to skip instead, ascending numbers from 0")
    follows_ratio = False

    def num_kept(self, num_layers: int, target_speedup: float) -> int:
        """Return the number of kept layers."""
        return num_layers - len(self.skip) if self.skip else len(self.layers)

    def kept_layers(self, request: ScheduleRequest) -> Layers:
        """Return the kept layers; raise UsageError if the model lacks the listed ones."""
        if not self.skip:
            return schedule.checked(request.num_layers, self.layers)
        if self.layers:
            raise UsageError("expected strategy.layers or strategy.skip, got both; leave out one")
        skipped = schedule.checked(request.num_layers, self.skip)
        return schedule.checked(
            request.num_layers, sorted({*range(request.num_layers)} - {*skipped})
        )
