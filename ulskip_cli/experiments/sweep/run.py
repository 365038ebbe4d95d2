"""A sweep from its jobs to its outcome: in this process, or by workers that a launcher starts, and starts again."""

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ulskip_cli.cli.sweep_display import SweepDisplay
from ulskip_cli.core.errors import RunError, StorageError
from ulskip_cli.experiments.results import FAILED, Row
from ulskip_cli.experiments.sweep.jobs import Job, folder_of
from ulskip_cli.experiments.sweep.launchers import SHARED, WorkerPool, make_worker_pool
from ulskip_cli.experiments.sweep.launchers.serve import WorkerSpec, make_job_runner, status_for
from ulskip_cli.experiments.sweep.sequential import SweepOutcome
from ulskip_cli.experiments.sweep.status import TO_DO, SweepStatus
from ulskip_cli.experiments.sweep.worker import FailurePolicy, marker_path, read_marker, run_jobs
from ulskip_cli.report import table

POLL_SECONDS = 0.5
TABLE_SECONDS = 5.0  # at least, from one writing of the tables to the next


@dataclass(frozen=True)
class SweepOptions:
    """How a sweep is run.

    Attributes:
        force: finished points too.
        fail_fast: end with the first failure.
    """

    force: bool = False
    fail_fast: bool = False


def sweep(jobs: Sequence[Job], wish: SweepOptions) -> SweepOutcome:
    """Settle all jobs.

    Raises:
        StorageError: the folder takes no more.
        RunError: workers die without getting anywhere.
        UsageError: the folder cannot be written, or the launcher is not there.
    """
    launcher, folder = jobs[0].config.launcher, folder_of(jobs)
    folder.check_writable()
    broken = folder.quarantine_corrupt_lines()
    if wish.force:
        for job in jobs:
            folder.partial_path(job.id).unlink(missing_ok=True)
    anywhere = launcher.name in SHARED
    turn = FailurePolicy(uuid.uuid4().hex, wish.fail_fast, launcher.deaths)
    with SweepDisplay(jobs, broken) as board:
        ledger = status_for(jobs, wish.force, anywhere)
        kept = _Kept(board, jobs, ledger)
        kept.look()
        if not kept.to_do:
            pass
        elif launcher.name == "inline":
            run_jobs(jobs, ledger, make_job_runner(board), turn, kept)
        else:
            orders = WorkerSpec(jobs, turn, ledger.since, wish.force, anywhere, str(Path.cwd()))
            crew = make_worker_pool(launcher, orders)
            try:
                _conduct(crew, jobs, ledger, turn, board, kept)
            finally:
                crew.end()
        kept.look()
        kept.write()
    rows = {job.id: row for job in jobs if (row := ledger.row(job)) is not None}
    failures = [f"{job.label}: {rows[job.id]['reason']}" for job in jobs if rows.get(job.id, {}).get("status") == FAILED]
    return SweepOutcome(sum(job.asked for job in jobs), rows, failures)


class _Kept:
    """Tells the board of rows as they come, and keeps the tables up to them."""

    def __init__(self, board: SweepDisplay, jobs: Sequence[Job], ledger: SweepStatus) -> None:
        self._board, self._jobs, self._ledger = board, jobs, ledger
        self._settled: set[str] = set()
        self._looked = self._written = False
        self._written_at = 0.0

    @property
    def to_do(self) -> list[Job]:
        """The jobs that have no row yet."""
        return [job for job in self._jobs if job.id not in self._settled]

    def look(self) -> None:
        """Find what others did; the first time, what was there before."""
        self._ledger.refresh()
        for job in self.to_do:
            if self._ledger.state(job) != TO_DO:
                self._take(job, self._ledger.row(job), ran=self._looked)
        self._looked = True

    def begins(self, job: Job) -> None:
        """This process runs a job."""
        self._board.begins(job)

    def settled(self, job: Job, row: Row | None, ran: bool) -> None:
        """This process found or made a row."""
        self._ledger.refresh()
        self._take(job, row, ran)

    def write(self) -> None:
        """Make the tables anew."""
        if self._ledger.folder.rows():
            table.write_tables(self._ledger.folder)
        self._written_at = time.monotonic()

    def _take(self, job: Job, row: Row | None, ran: bool) -> None:
        if job.id in self._settled:
            return
        self._settled.add(job.id)
        self._board.left(self._ledger.seconds_left(self.to_do))
        self._board.settled(job, row, ran)
        if ran and time.monotonic() - self._written_at >= TABLE_SECONDS:
            self.write()


def _conduct(
    crew: WorkerPool, jobs: Sequence[Job], ledger: SweepStatus, turn: FailurePolicy, board: SweepDisplay, kept: _Kept
) -> None:
    """Start workers, and again those that die, until all jobs are settled."""
    workers = range(min(crew.size, len(kept.to_do)))
    board.workers = len(workers)
    for number in workers:
        crew.start(number)
    deaths, before = 0, len(kept.to_do)
    while kept.to_do and not (turn.fail_fast and ledger.any_failed(jobs)):
        time.sleep(POLL_SECONDS)
        kept.look()
        if len(kept.to_do) < before:
            deaths, before = 0, len(kept.to_do)
        board.running(_running(jobs, ledger, turn))
        for number in workers:
            if crew.is_alive(number) or not kept.to_do:
                continue
            words = crew.exit_message(number)
            if words:
                raise StorageError(words)
            if words is None:
                deaths += 1
                board.note(f"worker {number} died; its point goes on from its last finished batch")
                _check_deaths(deaths, turn.deaths * (len(workers) + 1), ledger)
            kept.look()
            if kept.to_do:
                crew.start(number)


def _check_deaths(deaths: int, most: int, ledger: SweepStatus) -> None:
    if deaths > most:
        raise RunError(f"workers died {deaths} times and finished nothing; see {ledger.folder.path / 'logs'}")


def _running(jobs: Sequence[Job], ledger: SweepStatus, turn: FailurePolicy) -> list[str]:
    """What the workers of this sweep are at, a line each."""
    marks = [(job.label, read_marker(marker_path(ledger.folder, job))) for job in jobs]
    return [
        f"{label}: {mark.get('phase', 'begins')} {mark.get('done', 0)}/{mark['total']}" if mark.get("total") else label
        for label, mark in marks
        if mark.get("token") == turn.token
    ]
