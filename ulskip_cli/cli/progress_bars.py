"""Progress bars on standard error."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ulskip_cli.core.progress import NullProgress, ReportProgress, throttled


class ProgressBars:
    """One bar a phase; the one before is finished when the next begins."""

    def __init__(self, enabled: bool = True) -> None:
        """Draw on standard error; where that is no terminal, nothing moves and each phase is one line."""
        self._console = Console(stderr=True)
        self._lines = enabled and not self._console.is_terminal
        label = TextColumn("{task.description:<28}")
        columns = (
            label,
            BarColumn(30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        self._bars = Progress(*columns, console=self._console, disable=not enabled or self._lines)
        self._prefix = ""

    def __enter__(self) -> Self:
        """Start drawing."""
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Leave the bars as they stand."""
        if kind is None:
            self._finish_last()
        self._bars.stop()

    def point(self, number: int, total: int) -> None:
        """From here on phases belong to one point of many."""
        self._prefix = f"[{number}/{total}] "

    def note(self, text: str) -> None:
        """Something that people should know."""
        self._bars.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def phase(self, label: str, total: int) -> ReportProgress:
        """A new bar; none for a short stretch."""
        self._finish_last()
        if not total:
            return NullProgress().phase(label, total)
        if self._lines:
            self._console.print(f"{self._prefix}{label} ({total})", markup=False)
        task = self._bars.add_task(f"{self._prefix}{label}".replace("[", r"\["), total=total, note="")
        return throttled(total, lambda done, note: self._bars.update(task, completed=done, note=note))

    def _finish_last(self) -> None:
        if self._bars.tasks:
            last = self._bars.tasks[-1]
            self._bars.update(last.id, completed=last.total)
