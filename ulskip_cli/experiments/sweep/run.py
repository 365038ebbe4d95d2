"""Run the jobs of a sweep, in this process or by workers that a launcher starts."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ulskip_cli.core.errors import RunError
from ulskip_cli.core.progress import ProgressCallback
from ulskip_cli.experiments.record import FAILED, Record
from ulskip_cli.experiments.results import ResultsFolder
from ulskip_cli.experiments.sweep.jobs import Job, results_folder
from ulskip_cli.experiments.sweep.launchers import POOLS, worker_command
from ulskip_cli.experiments.sweep.outcome import SweepOutcome
from ulskip_cli.experiments.sweep.status import TO_DO, SweepStatus
from ulskip_cli.experiments.sweep.worker import JobObserver, Worker, make_job_runner

POLL_SECONDS = 0.5


@dataclass(frozen=True)
class SweepOptions:
    """Options of a sweep."""

    force: bool = False  # run finished points again
    fail_fast: bool = False  # stop at the first failure
    since: int | None = (
        # of a worker: the number of rows when its sweep began; None: this process is the sweep
        None
    )
    words: Sequence[str] | None = (
        None  # of the command line, which workers run; None: this process runs the jobs
    )


class SweepObserver(JobObserver, ProgressCallback, Protocol):
    """Receives the events of a sweep, e.g. the terminal's display."""

    def note(self, text: str) -> None:
        """Show a line to the user."""

    def rows_changed(self, folder: ResultsFolder) -> None:
        """Handle rows appended to the folder."""


def run_sweep(jobs: Sequence[Job], options: SweepOptions, observer: SweepObserver) -> SweepOutcome:
    """Run all jobs that are not finished, and return the records of all jobs.

    Raises UsageError if the folder cannot be written or the launcher's package is missing,
    StorageError if a result cannot be stored, and RunError if workers end without finishing all
    points.
    """
    launcher, folder = jobs[0].config.launcher, results_folder(jobs)
    is_worker = options.since is not None
    folder.check_writable()
    if not is_worker and (moved := folder.quarantine_corrupt_lines()):
        observer.note(moved)
    if options.force and not is_worker:
        for job in jobs:
            folder.checkpoint_path(job.id).unlink(missing_ok=True)
    status = SweepStatus(folder, launcher.name, options.force, options.since)
    tracker = _Tracker(observer, jobs, status)
    tracker.update()
    runs_here = launcher.name == "inline" or is_worker or options.words is None
    if tracker.to_do and runs_here:
        Worker(jobs, status, make_job_runner(observer), tracker, options.fail_fast).run()
    elif tracker.to_do:
        command = worker_command(options.words or (), status.since)
        pool = POOLS[launcher.name](launcher, command, folder.path / "logs", len(tracker.to_do))
        try:
            while pool.alive():
                time.sleep(POLL_SECONDS)
                tracker.update()
        finally:
            pool.end()
    tracker.update()
    observer.rows_changed(folder)
    if tracker.to_do and not runs_here and not (options.fail_fast and status.any_failed(jobs)):
        raise RunError(
            f"{len(tracker.to_do)} of {len(jobs)} points are left, because all workers ended, e.g."
            f" out of memory; see {folder.path / 'logs'}, and run the same command again to"
            " continue"
        )
    records = {job.id: record for job in jobs if (record := status.record(job)) is not None}
    failed = [
        (job.label, records[job.id])
        for job in jobs
        if job.id in records and records[job.id].status == FAILED
    ]
    return SweepOutcome(
        sum(job.requested for job in jobs),
        records,
        [f"{label}: {record.reason}" for label, record in failed],
    )


class _Tracker:
    """A `JobObserver` that tracks which jobs this or another process has settled, and notifies the
    sweep's observer.
    """

    def __init__(self, observer: SweepObserver, jobs: Sequence[Job], status: SweepStatus) -> None:
        self.observer, self.jobs, self.status = observer, jobs, status
        self._settled: set[str] = set()
        self._is_first_update = True

    @property
    def to_do(self) -> list[Job]:
        """The jobs that have no record yet."""
        return [job for job in self.jobs if job.id not in self._settled]

    def update(self) -> None:
        """Settle the jobs that other processes recorded since the last call; the first call
        includes earlier sweeps.
        """
        self.status.refresh()
        for job in self.to_do:
            if self.status.state(job) != TO_DO:
                self._settle(job, self.status.record(job), ran=not self._is_first_update)
        self._is_first_update = False

    def job_started(self, job: Job) -> None:
        """Notify the observer."""
        self.observer.job_started(job)

    def job_settled(self, job: Job, record: Record | None, ran: bool) -> None:
        """Notify the observer."""
        self.status.refresh()
        self._settle(job, record, ran)

    def _settle(self, job: Job, record: Record | None, ran: bool) -> None:
        if job.id in self._settled:
            return
        self._settled.add(job.id)
        self.observer.job_settled(job, record, ran)
        if ran:
            self.observer.rows_changed(self.status.folder)
