"""A worker of a sweep: it runs unclaimed jobs until every job has a record."""

import gc
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from ulskip_cli.core import interruption
from ulskip_cli.core.errors import NotApplicable, RunError, StorageError
from ulskip_cli.core.files import write_atomic
from ulskip_cli.core.progress import ProgressCallback
from ulskip_cli.experiments.record import Record
from ulskip_cli.experiments.results import ResultsFolder
from ulskip_cli.experiments.sweep.jobs import Job
from ulskip_cli.experiments.sweep.status import TO_DO, SweepStatus

POLL_SECONDS = 0.2
RunJob = Callable[
    [Job, Record | None], Record
]  # takes a job and its baseline's record, returns the stored record


class JobObserver(Protocol):
    """Receives the start and the end of every job of a worker."""

    def job_started(self, job: Job) -> None:
        """Handle the start of a job in this process."""

    def job_settled(self, job: Job, record: Record | None, ran: bool) -> None:
        """Handle the record of a job; `ran` is True if this process has just run it."""


@dataclass
class Worker:
    """Runs jobs in order. The worker skips a job that another worker has claimed, and waits for it
    at the end.

    A job that was claimed before and has no record comes last, because it may have ended the
    process that ran it.
    """

    jobs: Sequence[Job]  # all jobs of the sweep, a baseline before its points
    status: SweepStatus
    run_job: RunJob
    observer: JobObserver
    fail_fast: bool = False  # stop at the first failure

    def run(self) -> None:
        """Run the unfinished jobs; raise StorageError if the results folder cannot be written."""
        pending = sorted(self.jobs, key=lambda job: self.status.folder.was_claimed(job.id))
        while pending:
            left = []
            for job in pending:
                if self.fail_fast and self.status.any_failed(self.jobs):
                    return
                if not self._settle(job):
                    left.append(job)
            if len(left) == len(pending):
                time.sleep(POLL_SECONDS)
                self.status.refresh()
            pending = left

    def _settle(self, job: Job) -> bool:
        """Run a job that has no record; return False if another worker has claimed the job, or the
        baseline is missing.
        """
        if self.status.state(job) != TO_DO:
            self.observer.job_settled(job, self.status.record(job), ran=False)
            return True
        baseline = None
        if job.baseline:
            baseline = self.status.finished(job.baseline)
            if baseline is None and not self.status.has_no_result(job.baseline):
                return False
        with self.status.folder.claim(job.id) as claimed:
            if not claimed:
                return False
            self.status.refresh()
            if self.status.state(job) == TO_DO:
                self._run(job, baseline)
                self.status.refresh()
                return True
        self.observer.job_settled(job, self.status.record(job), ran=False)
        return True

    def _run(self, job: Job, baseline: Record | None) -> None:
        interruption.check()
        self.observer.job_started(job)
        try:
            if job.refused:
                raise job.refused
            if job.baseline and baseline is None:
                raise RunError(
                    f"expected a result of the full baseline {job.baseline}, got none; fix that run"
                    " first"
                )
            record = self.run_job(job, baseline)
        except StorageError:
            raise
        except Exception as error:
            record = store_failure(job, error, self.status.folder)
        self.observer.job_settled(job, record, ran=True)


def make_job_runner(progress: ProgressCallback) -> RunJob:
    """Return a function that runs one job per call and keeps the weights loaded between calls."""
    from ulskip_cli.experiments import runner
    from ulskip_cli.inference.batching import release

    session, failed_before = runner.Session(progress), False

    def run(job: Job, baseline: Record | None) -> Record:
        nonlocal failed_before
        if failed_before:  # the failed job may still hold memory
            gc.collect()
            release()
        failed_before = True
        assert job.point is not None
        record = runner.run_point(job.point, session, baseline)[-1]
        failed_before = False
        return record

    return run


def store_failure(job: Job, error: Exception, folder: ResultsFolder) -> Record:
    """Store a failed job's record and traceback; raise StorageError if the results folder cannot be
    written.
    """
    record = job.failure_record(error)
    finished_at = datetime.now(UTC).isoformat(timespec="seconds")
    if not isinstance(error, NotApplicable):
        log = folder.path / "logs" / f"{job.id}.log"
        details = "".join(traceback.format_exception(error))
        write_atomic(log, f"{finished_at} {job.label}\n{details}")
        record = record.replace(log=str(log.relative_to(folder.path)))
    record = record.replace(finished_at=finished_at)
    folder.append(record)
    return record
