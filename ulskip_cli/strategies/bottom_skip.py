"""Bottom skipping: keep the last layers (a baseline of arXiv:2404.06954)."""

from dataclasses import dataclass
from typing import ClassVar

from ulskip_cli.strategies import schedule
from ulskip_cli.strategies.patching import SkippingOptions


@dataclass(frozen=True)
class BottomSkip(SkippingOptions):
    """Keep the last R layers."""

    follows_ratio: ClassVar[bool] = True
    num_kept = staticmethod(schedule.num_kept)
    kept_layers = staticmethod(schedule.last)
