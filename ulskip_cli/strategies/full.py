"""The full model, the baseline: keep every layer."""

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Full:
    """Keep all layers at every ratio."""

    follows_ratio: ClassVar[bool] = False

    def num_kept(self, num_layers: int, target_speedup: float) -> int:
        """Return the number of all layers."""
        return num_layers

    def kept_layers(self, num_layers: int, num_kept: int) -> tuple[int, ...]:
        """Return the layers 0 to N-1."""
        return tuple(range(num_layers))
