"""Run the jobs of a sweep, in this process or by workers that a launcher starts and restarts if they die."""

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ulskip_cli.core.errors import RunError, StorageError
from ulskip_cli.core.progress import ProgressCallback
from ulskip_cli.experiments.record import FAILED, Record
from ulskip_cli.experiments.results import ResultsFolder
from ulskip_cli.experiments.sweep.jobs import Job, results_folder
from ulskip_cli.experiments.sweep.launchers import SHARED, WorkerPool, make_worker_pool
from ulskip_cli.experiments.sweep.launchers.serve import WorkerSpec, make_job_runner, status_for
from ulskip_cli.experiments.sweep.outcome import SweepOutcome
from ulskip_cli.experiments.sweep.running_marker import running_jobs
from ulskip_cli.experiments.sweep.status import TO_DO, SweepStatus
from ulskip_cli.experiments.sweep.worker import FailurePolicy, JobObserver, Worker

POLL_SECONDS = 0.5
LOGGING_SECONDS = 60.0  # for the last points of the workers, whose rows are stored before they are logged to a tracker


@dataclass(frozen=True)
class SweepOptions:
    """Options of a sweep."""

    force: bool = False  # run finished points again
    fail_fast: bool = False  # stop at the first failure


class SweepObserver(JobObserver, ProgressCallback, Protocol):
    """Receives the events of a sweep, e.g. the terminal's display."""

    def note(self, text: str) -> None:
        """Show a line to the user."""

    def running(self, lines: Sequence[str]) -> None:
        """Show the running jobs of the workers, one line each."""

    def rows_changed(self, folder: ResultsFolder) -> None:
        """Handle rows appended to the folder."""


def run_sweep(jobs: Sequence[Job], options: SweepOptions, observer: SweepObserver) -> SweepOutcome:
    """Run all jobs that are not finished, and return the records of all jobs.

    Raises UsageError if the folder cannot be written or the launcher's package is missing, StorageError if a result cannot
    be stored, and RunError if workers die without finishing anything.
    """
    launcher, folder = jobs[0].config.launcher, results_folder(jobs)
    folder.check_writable()
    if moved := folder.quarantine_corrupt_lines():
        observer.note(moved)
    if options.force:
        for job in jobs:
            folder.checkpoint_path(job.id).unlink(missing_ok=True)
    anywhere = launcher.name in SHARED
    policy = FailurePolicy(uuid.uuid4().hex, options.fail_fast, launcher.max_retries)
    status = status_for(jobs, options.force, anywhere)
    tracker = _Tracker(observer, jobs, status)
    tracker.update()
    if tracker.to_do and launcher.name == "inline":
        Worker(jobs, status, make_job_runner(observer), policy, tracker).run()
    elif tracker.to_do:
        spec = WorkerSpec(jobs, policy, status.since, options.force, anywhere, str(Path.cwd()))
        pool = make_worker_pool(launcher, spec)
        try:
            _supervise(pool, policy, tracker)
        finally:
            pool.end()
    tracker.update()
    observer.rows_changed(folder)
    records = {job.id: record for job in jobs if (record := status.record(job)) is not None}
    failed = [(job.label, records[job.id]) for job in jobs if job.id in records and records[job.id].status == FAILED]
    return SweepOutcome(sum(job.requested for job in jobs), records, [f"{label}: {record.reason}" for label, record in failed])


class _Tracker:
    """A `JobObserver` that tracks which jobs this or another process has settled, and notifies the sweep's observer."""

    def __init__(self, observer: SweepObserver, jobs: Sequence[Job], status: SweepStatus) -> None:
        self.observer, self.jobs, self.status = observer, jobs, status
        self._settled: set[str] = set()
        self._is_first_update = True

    @property
    def to_do(self) -> list[Job]:
        """The jobs that have no record yet."""
        return [job for job in self.jobs if job.id not in self._settled]

    def update(self) -> None:
        """Settle the jobs that other processes recorded since the last call; the first call includes earlier sweeps."""
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


def _supervise(pool: WorkerPool, policy: FailurePolicy, tracker: _Tracker) -> None:
    status, observer = tracker.status, tracker.observer
    workers = range(min(pool.size, len(tracker.to_do)))
    for number in workers:
        pool.start(number)
    num_deaths, num_left = 0, len(tracker.to_do)
    while tracker.to_do and not (policy.fail_fast and status.any_failed(tracker.jobs)):
        time.sleep(POLL_SECONDS)
        tracker.update()
        if len(tracker.to_do) < num_left:
            num_deaths, num_left = 0, len(tracker.to_do)
        observer.running(running_jobs(status.folder, list(tracker.jobs), policy.token))
        for number in workers:
            if pool.is_alive(number) or not tracker.to_do:
                continue
            message = pool.exit_message(number)
            if message:
                raise StorageError(message)
            if message is None:
                num_deaths += 1
                observer.note(f"worker {number} died; a new worker resumes the point after the last finished batch")
                if num_deaths > (policy.max_retries + 1) * (len(workers) + 1):
                    logs = status.folder.path / "logs"
                    raise RunError(f"workers died {num_deaths} times without finishing a point; see {logs}")
            tracker.update()
            if tracker.to_do:
                pool.start(number)
    if not tracker.to_do and tracker.jobs[0].config.tracker != "none":
        deadline = time.monotonic() + LOGGING_SECONDS
        while any(pool.is_alive(number) for number in workers) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
