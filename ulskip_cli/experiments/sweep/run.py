"""Run the jobs of a sweep, in this process or by workers that a launcher starts."""

import gc
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Protocol

from ulskip_cli.core import interruption
from ulskip_cli.core.errors import NotApplicable, RunError, StorageError
from ulskip_cli.core.files import write_atomic
from ulskip_cli.core.progress import ProgressCallback
from ulskip_cli.experiments.record import FAILED, Record
from ulskip_cli.experiments.results import ResultsFolder
from ulskip_cli.experiments.sweep.jobs import Job, SweepOutcome, SweepStatus
from ulskip_cli.experiments.sweep.launchers import POOLS, worker_command

if TYPE_CHECKING:
    from ulskip_cli.experiments.runner import Session

POLL_SECONDS = 0.3


@dataclass(frozen=True)
class SweepOptions:
    """Options of a sweep."""

    force: bool = False  # run finished points again
    fail_fast: bool = False  # stop at the first failure
    # in a worker: the number of rows when its sweep began; None: this process runs the sweep
    since: int | None = None
    # words of the command line that workers run; None: this process runs the jobs
    words: Sequence[str] | None = None


class SweepObserver(ProgressCallback, Protocol):
    """Receives the events of a sweep, e.g. the terminal's display."""

    def job_settled(self, job: Job, record: Record, is_new: bool) -> None:
        """Handle the record of a job; `is_new` is False if it was finished before the sweep."""


def run_sweep(jobs: Sequence[Job], options: SweepOptions, observer: SweepObserver) -> SweepOutcome:
    """Run all jobs that are not finished, and return the records of all jobs.

    Raises UsageError if the folder cannot be written or the launcher's package is missing,
    StorageError if a result cannot be stored, and RunError if workers end without finishing all
    points.
    """
    config, is_worker = jobs[0].config, options.since is not None
    folder = ResultsFolder.of(config)
    folder.check_writable()
    if not is_worker:
        if moved := folder.quarantine_corrupt_lines():
            observer.note(moved)
        for job in jobs if options.force else ():
            folder.checkpoint_path(job.id).unlink(missing_ok=True)
    status = SweepStatus(folder, config.launcher.name, options.force, options.since)
    sweep = _Sweep(jobs, status, observer)
    sweep.update(is_new=False)
    if config.launcher.name == "inline" or is_worker or options.words is None:
        sweep.run_here(options.fail_fast)
    elif unfinished := sweep.to_do:
        command, logs = worker_command(options.words, status.since), folder.path / "logs"
        pool = POOLS[config.launcher.name](config.launcher, command, logs, len(unfinished))
        try:
            while pool.alive():
                time.sleep(POLL_SECONDS)
                sweep.update()
        finally:
            pool.end()
        sweep.update()
        if sweep.to_do and not (options.fail_fast and sweep.failures()):
            raise RunError(
                f"{len(sweep.to_do)} of {len(jobs)} points did not run, because all workers ended"
                f" (perhaps out of memory); see {logs}, and run the same command again to continue"
            )
    records = {job.id: sweep.settled[job.id] for job in jobs if job.id in sweep.settled}
    return SweepOutcome(sum(job.requested for job in jobs), records, sweep.failures())


@dataclass
class _Sweep:
    jobs: Sequence[Job]  # a baseline before its points
    status: SweepStatus
    observer: SweepObserver
    settled: dict[str, Record] = field(default_factory=dict)

    @property
    def to_do(self) -> list[Job]:
        """The jobs that have no record yet."""
        return [job for job in self.jobs if job.id not in self.settled]

    def failures(self) -> list[str]:
        """Return one line for every job that failed in this sweep."""
        records = [(job.label, self.settled.get(job.id)) for job in self.jobs]
        return [
            f"{label}: {record.reason}"
            for label, record in records
            if record and record.status == FAILED
        ]

    def update(self, is_new: bool = True) -> None:
        """Settle the jobs that this or another process has recorded since the last call."""
        self.status.refresh()
        for job in self.to_do:
            if record := self.status.record(job):
                self.settled[job.id] = record
                self.observer.job_settled(job, record, is_new)

    def run_here(self, fail_fast: bool) -> None:
        """Run the jobs that no other process has claimed, and wait for the others.

        A job that was claimed before and has no record comes last, because it may have ended the
        process that ran it. Raises StorageError if the results folder cannot be written.
        """
        if not self.to_do:
            return
        from ulskip_cli.experiments.runner import Session

        folder, session = self.status.folder, Session(self.observer)
        order = sorted(self.to_do, key=lambda job: folder.was_claimed(job.id))
        while order:
            for job in order:
                if fail_fast and self.failures():
                    return
                if job.baseline and job.baseline not in self.settled:
                    continue
                with folder.claim(job.id) as is_claimed:
                    self.update()
                    if is_claimed and job.id not in self.settled:
                        self._run(job, session)
                        self.update()
            left = [job for job in order if job.id not in self.settled]
            if len(left) == len(order):
                time.sleep(POLL_SECONDS)
                self.update()
            order = left

    def _run(self, job: Job, session: "Session") -> None:
        """Run a job; store a failure as its record, with the traceback in a file."""
        from ulskip_cli.experiments import runner
        from ulskip_cli.inference.batching import release

        interruption.check()
        baseline = self.settled[job.baseline] if job.baseline else None
        try:
            if baseline and not baseline.is_done:
                raise RunError(
                    f"expected a result of the full baseline {baseline.id}, got none; fix that run"
                    " first"
                )
            if job.refused:
                raise job.refused
            assert job.point
            runner.run_point(job.point, session, baseline)
            return
        except StorageError:
            raise
        except Exception as error:
            folder = self.status.folder
            finished_at = datetime.now(UTC).isoformat(timespec="seconds")
            record = job.failure_record(error).replace(finished_at=finished_at)
            if not isinstance(error, NotApplicable):
                log = folder.path / "logs" / f"{job.id}.log"
                details = "".join(traceback.format_exception(error))
                write_atomic(log, f"{finished_at} {job.label}\n{details}")
                record = record.replace(log=str(log.relative_to(folder.path)))
            folder.append(record)
        gc.collect()  # outside the handler, because the traceback may hold memory
        release()
