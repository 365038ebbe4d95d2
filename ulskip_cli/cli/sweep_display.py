"""The display of a sweep on standard error: settled jobs, running jobs and their progress."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from ulskip_cli.cli.progress_bars import ProgressBars
from ulskip_cli.core.printable import printable
from ulskip_cli.core.progress import ReportProgress, clock
from ulskip_cli.experiments.record import DONE
from ulskip_cli.experiments.sweep.jobs import results_folder

if TYPE_CHECKING:
    from ulskip_cli.experiments.record import Record
    from ulskip_cli.experiments.results import ResultsFolder
    from ulskip_cli.experiments.sweep.jobs import Job

TABLE_SECONDS = 5.0  # at least, between two writings of the tables


class SweepDisplay:
    """Shows a sweep as lines that stay in place, or as a line per event if standard error is not a
    terminal.
    """

    def __init__(
        self, jobs: "Sequence[Job]", write_tables: "Callable[[ResultsFolder], object]"
    ) -> None:
        """Display these jobs; `write_tables` writes the tables of a results folder and is called at
        intervals.
        """
        self._write_tables = write_tables
        self._tables_written_at = float("-inf")
        self._total, self._logs = len(jobs), results_folder(jobs).path / "logs"
        self._notes: list[str] = []
        self._states: dict[str, str] = {}
        self._running: list[str] = []
        self._began = time.monotonic()
        self._phases = ProgressBars(clocks=False)
        self._drawn = self._phases.is_drawn
        self._live = Live(
            get_renderable=self._picture, console=self._phases.console, refresh_per_second=4
        )

    def __enter__(self) -> Self:
        if self._drawn:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._running.clear()
        self._phases.clear()
        if self._drawn:
            self._live.stop()

    def job_started(self, job: "Job") -> None:
        """Show the job that starts to run in this process."""
        self._running = [job.label]

    def job_settled(self, job: "Job", record: "Record | None", ran: bool) -> None:
        """Count a job as settled, and show the result if this process ran the job."""
        self._states[job.id] = record.status if record else DONE
        self._running = [line for line in self._running if line != job.label]
        self._phases.clear()
        if ran and not self._drawn:
            self.note(f"[{len(self._states)}/{self._total}] {job.label}: {_outcome(record)}")

    def rows_changed(self, folder: "ResultsFolder") -> None:
        """Write the tables again, unless they were written a moment ago."""
        if (
            time.monotonic() - self._tables_written_at >= TABLE_SECONDS
            or len(self._states) == self._total
        ):
            if folder.records():
                self._write_tables(folder)
            self._tables_written_at = time.monotonic()

    def note(self, text: str) -> None:
        """Show a note to the user; a terminal shows the last three."""
        if self._drawn:
            self._notes = [*self._notes[-2:], text]
        else:
            self._phases.note(text)

    def phase(self, label: str, total: int) -> ReportProgress:
        """Show a phase of the running job instead of the previous one."""
        self._phases.clear()
        if not self._drawn:
            self._phases.point(min(self._total, len(self._states) + 1), self._total)
        return self._phases.phase(label, total)

    def _picture(self) -> RenderableType:
        settled = len(self._states)
        counts = ", ".join(
            f"{count} {state}" for state, count in Counter(self._states.values()).items()
        )
        spent = clock(time.monotonic() - self._began)
        head = f"{settled} of {self._total} settled{f' ({counts})' if counts else ''}, {spent}"
        parts: list[RenderableType] = [
            Text(head, style="bold"),
            *(Text(note, style="yellow") for note in self._notes),
        ]
        parts += [Text(f"  {line}") for line in self._running or _worker_lines(self._logs)]
        if self._phases.bars.tasks:
            parts.append(self._phases.bars)
        return Group(*parts)


def _worker_lines(logs: Path) -> list[str]:
    """Return the last line that each worker of this machine has written."""
    lines = [
        file.read_text("utf-8", errors="replace").splitlines()[-1:]
        for file in sorted(logs.glob("worker-*.log"))
    ]
    return [printable(line) for last in lines for line in last]


def _outcome(record: "Record | None") -> str:
    if record is None or not record.is_done:
        return printable(f"{record.status}: {record.reason}") if record else "settled elsewhere"
    from ulskip_cli.experiments.statistics import TITLES, primary

    parts = [DONE]
    if record.wall_seconds:
        parts.append(f"{record.wall_seconds:.1f} s")
    if speedup := record.measured_speedup or record.predicted_speedup:
        parts.append(f"{speedup:.2f}x")
    if metric := primary([record]):
        parts.append(f"{TITLES[metric]} {record.value(metric):.1f}")
    return ", ".join(parts)
