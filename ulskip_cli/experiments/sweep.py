"""Run the jobs that a ledger does not settle: in this process, or by workers that a launcher
starts. Imports torch when the first job runs.
"""

import sys
import time
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ulskip_cli.core import interruption
from ulskip_cli.core.errors import NotApplicable, RunError, StorageError
from ulskip_cli.core.files import timestamp, write_atomic
from ulskip_cli.experiments.launchers import POOLS
from ulskip_cli.experiments.ledger import Job, Ledger, SweepObserver
from ulskip_cli.experiments.record import Record
from ulskip_cli.experiments.results import ResultsFolder

if TYPE_CHECKING:
    from ulskip_cli.experiments.runner import Models

POLL_SECONDS = 0.3


def run_jobs(
    ledger: Ledger,
    observer: SweepObserver | None = None,
    *,
    models: "Models | None" = None,
    raises: bool = False,
) -> None:
    """Run in this process the jobs that are to do and that no other process has claimed, and wait
    for the others; afterwards the ledger has a record of every job.

    A job that was claimed before and has no record comes last, because it may have ended the
    process that ran it. A job that fails is stored as its record, or with `raises` its error is
    raised. Raises UsageError or StorageError if the results folder cannot be written.
    """
    observer = observer or SweepObserver()
    folder = ledger.folder
    folder.check_writable()
    ledger.update(observer, is_new=False)
    if not ledger.to_do:
        return
    from ulskip_cli.experiments.runner import Models

    models = models or Models(observer)
    order = sorted(ledger.to_do, key=lambda job: folder.lock_path(job.id).exists())
    while order:
        for job in order:
            if job.baseline_id and job.baseline_id not in ledger.settled:
                continue
            with folder.hold(job.id, wait=False) as is_claimed:
                ledger.update(observer)
                if is_claimed and job.id not in ledger.settled:
                    _run_job(job, ledger, models, raises)
                    ledger.update(observer)
        left = [job for job in order if job.id not in ledger.settled]
        if len(left) == len(order):
            time.sleep(POLL_SECONDS)
            ledger.update(observer)
        order = left


def run_by_workers(ledger: Ledger, observer: SweepObserver, words: Sequence[str]) -> None:
    """Run the jobs that are to do in workers of the ledger's launcher, which run the command line
    `ulskip sweep` with these words; afterwards the ledger has a record of every job.

    Raises UsageError if the folder cannot be written or the launcher's package is missing, and
    RunError if the workers end without finishing all points.
    """
    ledger.folder.check_writable()
    ledger.update(observer, is_new=False)
    if not ledger.to_do:
        return
    command = [sys.executable, "-m", "ulskip_cli", "sweep", *words, "--since", str(ledger.began)]
    logs = ledger.folder.path / "logs"
    start = POOLS[ledger.launcher.name]
    with start(ledger.launcher, command, logs, len(ledger.to_do)) as alive:
        while alive():
            time.sleep(POLL_SECONDS)
            ledger.update(observer)
    ledger.update(observer)
    if ledger.to_do:
        raise RunError(
            f"{len(ledger.to_do)} of {len(ledger.jobs)} points did not run, because all workers"
            f" ended (perhaps out of memory); see {logs}, and run the same command again to"
            " continue"
        )


def start_over(ledger: Ledger) -> None:
    """Delete the finished batches of unfinished runs, because a forced sweep does not resume; raise
    UsageError if the folder cannot be written.
    """
    ledger.folder.check_writable()
    for job in ledger.jobs:
        ledger.folder.checkpoint_path(job.id).unlink(missing_ok=True)


def _run_job(job: Job, ledger: Ledger, models: "Models", raises: bool) -> None:
    """Run a job whose baseline is settled; store a failure as its record, unless it is raised."""
    from ulskip_cli.experiments.runner import run_point
    from ulskip_cli.inference.batching import free_unused_memory

    interruption.raise_if_interrupted()
    baseline = ledger.settled[job.baseline_id] if job.baseline_id else None
    try:
        if job.refusal:
            raise job.refusal
        assert job.point
        run_point(job.point, models, _finished(baseline))
        return
    except StorageError:
        raise
    except Exception as error:
        if raises:
            raise
        _store_failure(job, error, ledger.folder)
    free_unused_memory()  # outside the handler, because the traceback may hold memory


def _finished(baseline: Record | None) -> Record | None:
    """Return the record of a baseline; raise RunError if its run failed."""
    if baseline and not baseline.is_done:
        raise RunError(
            f"expected a result of the full baseline {baseline.id}, got none; fix that run first"
        )
    return baseline


def _store_failure(job: Job, error: Exception, folder: ResultsFolder) -> None:
    """Store the record of a failed job, with the traceback in a file."""
    finished_at = timestamp()
    record = job.failure_record(error).replace(finished_at=finished_at)
    if not isinstance(error, NotApplicable):
        log = folder.path / "logs" / f"{job.id}.log"
        details = "".join(traceback.format_exception(error))
        write_atomic(log, f"{finished_at} {job.label}\n{details}")
        record = record.replace(log=str(log.relative_to(folder.path)))
    folder.append(record)
