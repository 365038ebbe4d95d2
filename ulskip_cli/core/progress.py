"""Progress of long work, reported through callbacks that are independent of the display."""

import time
from collections.abc import Callable
from typing import Protocol

REFRESH_SECONDS = 0.2


class ReportProgress(Protocol):
    """A callback that receives the finished part of a phase and a short note such as tokens/s."""

    def __call__(self, done: int, note: str = "") -> None:
        """Report progress."""


class ProgressCallback(Protocol):
    """A receiver of progress, such as a progress bar."""

    def phase(self, label: str, total: int) -> ReportProgress:
        """End the current phase, begin another, and return a callback for its progress; a total of
        0 needs no display.
        """


class NullProgress:
    """A receiver that ignores all progress."""

    def phase(self, label: str, total: int) -> ReportProgress:
        """Return a callback that does nothing."""
        return lambda done, note="": None


def throttled(total: int, draw: Callable[[int, str], None]) -> ReportProgress:
    """Limit how often `draw` is called: at most every REFRESH_SECONDS, and always at the end."""
    drawn_at = float("-inf")

    def report(done: int, note: str = "") -> None:
        nonlocal drawn_at
        now = time.monotonic()
        if done == total or now - drawn_at >= REFRESH_SECONDS:
            drawn_at = now
            draw(done, note)

    return report


def clock(seconds: float) -> str:
    """Format seconds as minutes:seconds, or as hours:minutes:seconds from one hour on.

    >>> clock(61), clock(3723)
    ('1:01', '1:02:03')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
