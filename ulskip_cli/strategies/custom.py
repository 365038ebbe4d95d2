"""A schedule that somebody wrote down."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from ulskip_cli import schedule


@dataclass(frozen=True)
class Custom:
    """Keep exactly `layers`."""

    layers: list[int] = field(default_factory=list)
    follows_ratio: ClassVar[bool] = False

    def num_kept(self, num_layers: int, target_speedup: float) -> int:
        """As many as are listed."""
        return len(self.layers)

    def kept_layers(self, num_layers: int, num_kept: int) -> tuple[int, ...]:
        """The listed layers, checked against the model's depth."""
        layers: Sequence[int] = self.layers
        return schedule.checked(num_layers, layers)
