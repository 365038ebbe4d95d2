"""Progress bars on standard error."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from ulskip_cli.core import interruption
from ulskip_cli.core.printable import printable
from ulskip_cli.core.progress import NullProgress, ReportProgress, clock, throttled

LINE_SECONDS = 30.0


class ProgressBars:
    """Shows each phase as a bar, or as one line if standard error is not a terminal; a new phase
    completes the last bar.
    """

    def __init__(self, enabled: bool = True, clocks: bool = True) -> None:
        """Show only notes unless `enabled`; with `clocks`, each bar shows the elapsed and the
        remaining time.
        """
        self.console = Console(stderr=True)
        self.is_drawn = enabled and self.console.is_terminal
        self._has_lines = enabled and not self.is_drawn
        times = (TimeElapsedColumn(), TimeRemainingColumn()) if clocks else ()
        label, note = TextColumn("{task.description:<28}"), TextColumn("{task.fields[note]}")
        self.bars = Progress(
            label,
            BarColumn(30),
            MofNCompleteColumn(),
            *times,
            note,
            console=self.console,
            disable=not self.is_drawn,
        )
        self._prefix = ""

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self._finish_last()
        self.bars.stop()

    def point(self, number: int, total: int) -> None:
        """Show the number of the point that the next phases belong to."""
        self._prefix = f"[{number}/{total}] "

    def note(self, text: str) -> None:
        """Show a note to the user."""
        self.console.print(printable(text), markup=False, highlight=False, soft_wrap=True)

    def phase(self, label: str, total: int) -> ReportProgress:
        """Begin a phase; a phase with a total of 0 is short and not shown."""
        interruption.check()
        self._finish_last()
        if total and self._has_lines:
            self.note(f"{self._prefix}{label} ({total})")
        if total and self._has_lines:
            return self._lines(f"{self._prefix}{label}", total)
        if not total or not self.is_drawn:
            return NullProgress().phase(label, total)
        task = self.bars.add_task(
            f"{self._prefix}{label}".replace("[", r"\["), total=total, note=""
        )
        return throttled(
            total, lambda done, note: self.bars.update(task, completed=done, note=note)
        )

    def _lines(self, label: str, total: int) -> ReportProgress:
        """Write a line with the rate and the time left every LINE_SECONDS, for output that goes
        into a file.
        """
        first, began = None, time.monotonic()
        written_at = began

        def report(done: int, note: str = "") -> None:
            nonlocal first, began, written_at
            now = time.monotonic()
            if first is None:  # a resumed phase does not begin at 0
                first, began = done, now
            if now - written_at >= LINE_SECONDS and first < done < total:
                written_at = now
                rate = (done - first) / (now - began)
                parts = [
                    f"{done} of {total}",
                    note,
                    f"{rate:.3g}/s",
                    f"{clock((total - done) / rate)} left",
                ]
                self.note(f"{label}: {', '.join(part for part in parts if part)}")

        return report

    def clear(self) -> None:
        """Remove all bars."""
        for task in self.bars.task_ids:
            self.bars.remove_task(task)

    def _finish_last(self) -> None:
        if self.bars.tasks:
            self.bars.update(self.bars.tasks[-1].id, completed=self.bars.tasks[-1].total)
