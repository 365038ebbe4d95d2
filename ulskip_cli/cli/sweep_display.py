"""The display of a sweep on standard error: settled jobs, running jobs, the time left, and the best points so far."""

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from operator import itemgetter
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ulskip_cli.cli.progress_bars import ProgressBars
from ulskip_cli.core.printable import printable
from ulskip_cli.core.progress import ReportProgress
from ulskip_cli.core.progress import clock as clock
from ulskip_cli.experiments.record import DONE, Row, is_done

if TYPE_CHECKING:
    from ulskip_cli.experiments.record import RunRecord
    from ulskip_cli.experiments.results import ResultsFolder
    from ulskip_cli.experiments.sweep.jobs import Job

METRICS = {"bleu": "BLEU", "rougeL": "ROUGE-L", "exact_match": "exact"}
FRONT_ROWS = 8
TABLE_SECONDS = 5.0  # at least, between two writings of the tables


class SweepDisplay:
    """Shows a sweep as a table that stays in place, or as a line per event if standard error is not a terminal."""

    def __init__(self, jobs: "Sequence[Job]", write_tables: "Callable[[ResultsFolder], object]") -> None:
        """Display these jobs; `write_tables` writes the tables of a results folder and is called at intervals."""
        self.workers = 1
        self._write_tables = write_tables
        self._tables_written_at = float("-inf")
        self._total = len(jobs)
        self._notes: list[str] = []
        self._states: dict[str, str] = {}
        self._rows: dict[str, Row] = {}
        self._running: list[str] = []
        self._left: tuple[float, int] = (0.0, 0)
        self._began = self._guessed_at = time.monotonic()
        self._phases = ProgressBars(clocks=False)
        self._drawn = self._phases.is_drawn
        self._live = Live(get_renderable=self._picture, console=self._phases.console, refresh_per_second=4)

    def __enter__(self) -> Self:
        if self._drawn:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._running.clear()
        self._phases.clear()
        if self._drawn:
            self._live.stop()

    def job_started(self, job: "Job") -> None:
        """Show the job that starts to run in this process."""
        self._running = [job.label]

    def job_settled(self, job: "Job", record: "RunRecord | None", ran: bool) -> None:
        """Count a job as settled, and show the result if this process ran the job."""
        row = record.to_row() if record else None
        self._states[job.id] = row.get("status", DONE) if row else DONE
        if row and is_done(row):
            self._rows[job.id] = row
        self._running = [line for line in self._running if line != job.label]
        self._phases.clear()
        if ran and not self._drawn:
            settled, rest = len(self._states), self._total - len(self._states)
            left = f"; left: {time_left(self._left[0] / self.workers, self._left[1], rest)}" if rest else ""
            self.note(f"[{settled}/{self._total}] {job.label}: {_outcome(row)}{left}")

    def time_left(self, seconds: float, num_unknown: int) -> None:
        """Show the estimated seconds of the remaining jobs in sequence, and the number of jobs without an estimate."""
        self._left, self._guessed_at = (seconds, num_unknown), time.monotonic()

    def rows_changed(self, folder: "ResultsFolder") -> None:
        """Write the tables again, unless they were written a moment ago."""
        if time.monotonic() - self._tables_written_at >= TABLE_SECONDS or len(self._states) == self._total:
            if folder.rows():
                self._write_tables(folder)
            self._tables_written_at = time.monotonic()

    def running(self, lines: Sequence[str]) -> None:
        """Show the running jobs, one line per job."""
        self._running = list(lines)

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
        counts = ", ".join(f"{count} {state}" for state, count in Counter(self._states.values()).items())
        known, unknown = self._left
        seconds = max(0.0, known / self.workers - (time.monotonic() - self._guessed_at))
        head = f"{settled} of {self._total} settled{f' ({counts})' if counts else ''}, {clock(time.monotonic() - self._began)}"
        if settled < self._total:
            head += f", left: {time_left(seconds, unknown, self._total - settled)}"
        parts: list[RenderableType] = [Text(head, style="bold"), *(Text(note, style="yellow") for note in self._notes)]
        parts += [Text(f"  {line}") for line in self._running]
        if self._phases.bars.tasks:
            parts.append(self._phases.bars)
        best = front(list(self._rows.values()))
        return Group(*parts, *([_front_table(best)] if best else []))


def front(rows: Sequence[Row]) -> list[Row]:
    """Return the rows on the Pareto front of each model, task, language pair and batch size, in one list ordered by speed."""
    metric = _metric(rows)
    if metric is None:
        return []
    from ulskip_cli.report.plots import pareto_front

    settings: dict[tuple[object, ...], list[tuple[tuple[float, float], Row]]] = defaultdict(list)
    for row in rows:
        speedup = _speedup(row)
        if row.get(metric) is not None and speedup is not None:
            settings[tuple(map(row.get, ("model", "task", "pair", "batch_size")))].append(((speedup, row[metric]), row))
    best = []
    for members in settings.values():
        unbeaten = set(pareto_front([point for point, _ in members]))
        best += [(point[0], row) for point, row in members if point in unbeaten]
    return [row for _, row in sorted(best, key=itemgetter(0))]


def time_left(seconds: float, unknown: int, total: int) -> str:
    """Format the estimated seconds of the remaining points, and the number of points without an estimate.

    >>> time_left(90, 0, 3), time_left(90, 1, 3), time_left(0, 3, 3)
    ('about 1:30', 'about 1:30 and 1 point of unknown length', 'unknown')
    """
    if unknown >= total:
        return "unknown"
    rest = f" and {unknown} point{'s' * (unknown > 1)} of unknown length" if unknown else ""
    return f"about {clock(seconds)}{rest}"


def _front_table(rows: Sequence[Row]) -> Table:
    metric = _metric(rows) or ""
    table = Table(title="the best so far: no point is both faster and better", title_justify="left", title_style="")
    for name in ("strategy", "target", "batch", "speedup", METRICS[metric]):
        table.add_column(name, justify="left" if name == "strategy" else "right")
    for row in rows[-FRONT_ROWS:]:
        target = "–" if row["target_speedup"] is None else f"{row['target_speedup']:g}x"
        table.add_row(row["strategy"], target, str(row["batch_size"]), f"{_speedup(row):.2f}", f"{row[metric]:.1f}")
    return table


def _metric(rows: Sequence[Row]) -> str | None:
    return next((key for key in METRICS if any(row.get(key) is not None for row in rows)), None)


def _speedup(row: Row) -> float | None:
    measured = row.get("measured_speedup")
    return measured if measured is not None else row.get("predicted_speedup")


def _outcome(row: Row | None) -> str:
    if row is None or not is_done(row):
        return printable(f"{row['status']}: {row['reason']}") if row else "settled elsewhere"
    metric, parts = _metric([row]), []
    if row.get("wall_seconds"):
        parts.append(f"{row['wall_seconds']:.1f} s")
    if _speedup(row) is not None:
        parts.append(f"{_speedup(row):.2f}x")
    if metric:
        parts.append(f"{METRICS[metric]} {row[metric]:.1f}")
    return ", ".join([DONE, *parts])
