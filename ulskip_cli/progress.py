"""How long work tells how far it is, without knowing who looks."""

from typing import Protocol


class Tell(Protocol):
    """Takes how much of a stretch of work is done, and a few words beside it, such as tokens/s."""

    def __call__(self, done: int, note: str = "") -> None:
        """Tell."""


class Progress(Protocol):
    """Somebody who watches."""

    def phase(self, label: str, total: int) -> Tell:
        """Announce a stretch of work; the returned function takes how much of `total` is done.

        It lasts until the next is announced. A total of 0 is a short stretch that nobody needs to see.
        """


class Silent:
    """Nobody watches."""

    def phase(self, label: str, total: int) -> Tell:
        """Ignore it."""

        def tell(done: int, note: str = "") -> None:
            pass

        return tell
