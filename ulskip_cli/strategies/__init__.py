"""Which layers to keep: one small file a strategy, one interface for all of them."""

from typing import ClassVar, Protocol


class Strategy(Protocol):
    """A policy that decides, from integers alone, which layers a decode step runs."""

    follows_ratio: ClassVar[bool]
    """Whether the asked-for speedup decides how many layers are kept."""

    def num_kept(self, num_layers: int, target_speedup: float) -> int:
        """How many layers a target speedup leaves when it means a share of the layers."""

    def kept_layers(self, num_layers: int, num_kept: int) -> tuple[int, ...]:
        """The layers to run, ascending."""
