"""How long work tells how far it is, without knowing who looks."""

import time
from collections.abc import Callable
from typing import Protocol

REFRESH_SECONDS = 0.2  # telling more often than is drawn would only cost time


class ReportProgress(Protocol):
    """Takes how much of a stretch of work is done, and a few words beside it, such as tokens/s."""

    def __call__(self, done: int, note: str = "") -> None:
        """Tell."""


class ProgressCallback(Protocol):
    """Somebody who watches."""

    def phase(self, label: str, total: int) -> ReportProgress:
        """Announce a stretch of work; the returned function takes how much of `total` is done.

        It lasts until the next is announced. A total of 0 is a short stretch that nobody needs to see.
        """


class NullProgress:
    """Nobody watches."""

    def phase(self, label: str, total: int) -> ReportProgress:
        """Ignore it."""

        def tell(done: int, note: str = "") -> None:
            pass

        return tell


def throttled(total: int, draw: Callable[[int, str], None]) -> ReportProgress:
    """What draws no oftener than people can see, and always when all of `total` is done."""
    drawn_at = float("-inf")

    def tell(done: int, note: str = "") -> None:
        nonlocal drawn_at
        now = time.monotonic()
        if done == total or now - drawn_at >= REFRESH_SECONDS:
            drawn_at = now
            draw(done, note)

    return tell


class Stopwatch:
    """Keeps the seconds of every phase, and passes on what it is told."""

    def __init__(self, label: str, began: float | None = None) -> None:
        """Start with a phase that has begun already.

        Args:
            label: of the first phase.
            began: when, on the clock of `time.monotonic`; None: now.
        """
        self.inner: ProgressCallback = NullProgress()
        self.seconds: dict[str, float] = {}
        self._label = label
        self._since = time.monotonic() if began is None else began

    def phase(self, label: str, total: int) -> ReportProgress:
        """Add up the phase before, and begin another."""
        self.stop()
        self._label = label
        return self.inner.phase(label, total)

    def stop(self) -> None:
        """Add up the phase that ends here; phases of one label are one."""
        now = time.monotonic()
        self.seconds[self._label] = self.seconds.get(self._label, 0.0) + now - self._since
        self._since = now
