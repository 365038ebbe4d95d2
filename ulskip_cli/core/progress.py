"""Progress of long work, reported through callbacks that are independent of the display."""

from typing import Protocol


class ReportProgress(Protocol):
    """A callback that receives the finished part of a phase and a note such as tokens/s."""

    def __call__(self, done: int, note: str = "") -> None:
        """Report progress."""


class ProgressCallback:
    """A receiver of progress, such as a progress bar. This base class ignores it."""

    def phase(self, label: str, total: int = 1) -> ReportProgress:
        """End the current phase, begin another unless it has the same label, and return its
        callback.
        """
        return lambda done, note="": None

    def note(self, text: str) -> None:
        """Show a line to the user."""


def duration(seconds: float) -> str:
    """Name a duration.

    >>> duration(20), duration(60), duration(700), duration(6000)
    ('less than a minute', 'about 1 minute', 'about 12 minutes', 'about 1.7 hours')
    """
    minutes = round(seconds / 60)
    if seconds < 45:
        return "less than a minute"
    if minutes == 1:
        return "about 1 minute"
    return f"about {minutes} minutes" if minutes < 90 else f"about {seconds / 3600:.1f} hours"
