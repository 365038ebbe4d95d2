"""Progress on standard error: bars on a terminal, or else lines."""

import sys
import threading
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from ulskip_cli.core import interruption
from ulskip_cli.core.files import printable
from ulskip_cli.core.progress import ProgressCallback, ReportProgress, duration
from ulskip_cli.experiments.ledger import Job, SweepObserver
from ulskip_cli.experiments.record import Record
from ulskip_cli.experiments.results import ResultsFolder

LINE_SECONDS = 30.0  # between two lines of a phase, also while it reports nothing
TABLE_SECONDS = 5.0  # at least, between two writings of the tables


class ProgressBars(ProgressCallback):
    """Shows each phase as a bar, or as lines if standard error is no terminal."""

    def __init__(self, loading: str = "") -> None:
        """Show, while torch is imported, that the model `loading` is loaded."""
        self._loading = loading
        self.console = Console(stderr=True)
        self.bars = Progress(
            TextColumn("{task.description:<28}", markup=False),
            BarColumn(30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=self.console,
            disable=not self.console.is_terminal,
            speed_estimate_period=3600.0,  # steps of slow models take minutes
        )
        self._prefix = ""  # of labels, for subclasses
        self._label = ""  # of the running phase
        self._task: TaskID | None = None  # its bar
        self._shown_at = time.monotonic()  # when the last line was written
        self._ended = threading.Event()

    def __enter__(self) -> Self:
        self.bars.start()
        if self.bars.disable:
            threading.Thread(target=self._write_lines, daemon=True).start()
        if self._loading and "torch" not in sys.modules:
            self.phase(f"load {self._loading}")
        return self

    def _write_lines(self) -> None:
        """Write, in a thread, the state of a phase after LINE_SECONDS of silence."""
        while not self._ended.wait(LINE_SECONDS / 30):
            line, silence = self.line(), time.monotonic() - self._shown_at
            if line and silence >= LINE_SECONDS:
                self.note(line)

    def line(self) -> str:
        """Return the state of the running phase; empty if it has ended."""
        if self._task is None or self.bars.tasks[-1].finished:
            return ""
        task = self.bars.tasks[-1]  # that of the phase
        parts = [f"{task.completed} of {task.total}"]
        if task.total == 1:  # a phase such as a download counts nothing
            parts = [str(timedelta(seconds=int(task.elapsed or 0)))]
        if task.fields["note"]:
            parts.append(task.fields["note"])
        if task.time_remaining is not None:
            parts.append(f"{timedelta(seconds=task.time_remaining)} left")
        return f"{self._label}: {', '.join(parts)}"

    def __exit__(self, kind: type[BaseException] | None, *details: object) -> None:
        self._ended.set()
        if kind is None:
            self._end_phase()
        self.bars.stop()

    def note(self, text: str) -> None:
        """Show a note to the user."""
        self._shown_at = time.monotonic()
        self.console.print(printable(text), markup=False, highlight=False, soft_wrap=True)

    def phase(self, label: str, total: int = 1) -> ReportProgress:
        """Begin a phase, unless it is the running one, and return the callback for its progress.
        Raise KeyboardInterrupt if a signal came.
        """
        interruption.raise_if_interrupted()
        self.bars.start()  # again after `pause`
        task, label = self._task, self._prefix + label
        if task is None or label != self._label:
            self._end_phase()
            task = self._task = self.bars.add_task(label, total=total, note="")
            self._label = label
            if self.bars.disable:
                self.note(f"{label} ({total})" if total > 1 else label)
        return lambda done, note="": self.bars.update(task, completed=done, note=note)

    def pause(self) -> None:
        """Take the bars from the screen until the next phase, so that a text can be printed."""
        self._end_phase()
        for task in self.bars.task_ids:
            self.bars.remove_task(task)
        self.bars.stop()

    def _end_phase(self) -> None:
        if self._task is not None:
            self.bars.update(self._task, completed=self.bars.tasks[-1].total)
        self._label, self._task = "", None


class SweepDisplay(ProgressBars, SweepObserver):
    """Shows a sweep: the phase of the running job, and a line for each new result."""

    def __init__(self, jobs: Sequence[Job], writes_tables: bool = True) -> None:
        """Display these jobs, and write tables at intervals and at the end."""
        super().__init__(jobs[0].config.model.label)
        self._config = jobs[0].config
        self._writes_tables, self._written_at = writes_tables, float("-inf")
        self._total, self._settled = len(jobs), 0
        self._began, self._measured = time.monotonic(), 0  # points that this sweep measured
        self._prefix = f"[1/{self._total}] "  # before the labels of phases

    def __exit__(self, kind: type[BaseException] | None, *details: object) -> None:
        super().__exit__(kind, *details)
        if kind is None:
            self._write_tables(at_least_after=0)

    def job_settled(self, job: Job, record: Record, is_new: bool) -> None:
        """Count a job; show its result and write tables if it `is_new`, not stored before the
        sweep.
        """
        from ulskip_cli.experiments.statistics import sentence

        self._end_phase()
        self._settled += 1
        if is_new:
            self._measured += record.is_done
            result = f"{job.label}: {sentence(record)}{self._time_left()}"
            self.note(f"[{self._settled}/{self._total}] {result}")
            self._write_tables(TABLE_SECONDS)
        self._prefix = f"[{min(self._total, self._settled + 1)}/{self._total}] "

    def _time_left(self) -> str:
        """Tell how long the other points will take, by those that were measured; empty if none is
        left or was measured.
        """
        count = self._total - self._settled
        if not count or not self._measured:
            return ""
        mean = (time.monotonic() - self._began) / self._measured
        noun = "point" if count == 1 else "points"
        return f" ({duration(mean * count)} left for {count} {noun})"

    def _write_tables(self, at_least_after: float) -> None:
        """Write the tables, if they are wanted and the last writing is as many seconds ago."""
        is_early = time.monotonic() - self._written_at < at_least_after
        if is_early or not self._writes_tables:
            return
        from ulskip_cli.report import tables

        folder = ResultsFolder.of(self._config)
        if folder.records():
            tables.write_tables(folder)
        self._written_at = time.monotonic()

    def _end_phase(self) -> None:
        """Remove the bar: a sweep has too many phases to keep them."""
        if self._task is not None:
            self.bars.remove_task(self._task)
        self._label, self._task = "", None
