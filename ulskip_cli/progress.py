"""How long work tells how far it is, without knowing who looks."""

from collections.abc import Callable
from typing import Protocol


class Progress(Protocol):
    """Somebody who watches."""

    def phase(self, label: str, total: int) -> Callable[[int], None]:
        """Announce a stretch of work; the returned function takes how much of `total` is done."""


class Silent:
    """Nobody watches."""

    def phase(self, label: str, total: int) -> Callable[[int], None]:
        """Ignore it."""
        return lambda done: None
