"""One worker of a sweep: takes the jobs that nobody else has taken until all are settled. There may be many, anywhere."""

import contextlib
import json
import os
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ulskip_cli.core.errors import NotApplicable, RunError, StorageError, UsageError
from ulskip_cli.core.files import write_atomic
from ulskip_cli.core.progress import ReportProgress
from ulskip_cli.experiments.results import ResultsFolder, Row
from ulskip_cli.experiments.sweep.jobs import Job
from ulskip_cli.experiments.sweep.status import TO_DO, SweepStatus

POLL_SECONDS = 0.2
TELL_SECONDS = 1.0
RunJob = Callable[[Job, Row | None], Row]


class SweepObserver(Protocol):
    """Somebody who watches jobs."""

    def begins(self, job: Job) -> None:
        """A job is run."""

    def settled(self, job: Job, row: Row | None, ran: bool) -> None:
        """A job has its row; whether it was run just now, by this worker."""


@dataclass(frozen=True)
class FailurePolicy:
    """One sweep's way with failures.

    Attributes:
        token: tells this sweep from others.
        fail_fast: end with the first failure.
        deaths: workers of this sweep that may die on a point; then it counts as failed.
    """

    token: str
    fail_fast: bool = False
    deaths: int = 3


def run_jobs(jobs: Sequence[Job], ledger: SweepStatus, run: RunJob, turn: FailurePolicy, watch: SweepObserver) -> None:
    """Run what is to do, in order; a job that another worker has taken is passed over, and waited for in the end.

    Args:
        jobs: of the sweep, a baseline before the points that need it.
        ledger: of their folder.
        run: runs a job, given its baseline's row, and returns the row that it stored.
        turn: of the sweep.
        watch: told of every job.

    Raises:
        StorageError: the folder takes no more.
    """
    pending = list(jobs)
    while pending:
        left = []
        for job in pending:
            if turn.fail_fast and ledger.any_failed(jobs):
                return
            if not _settle(job, ledger, run, turn, watch):
                left.append(job)
        if len(left) == len(pending):
            time.sleep(POLL_SECONDS)
            ledger.refresh()
        pending = left


def _settle(job: Job, ledger: SweepStatus, run: RunJob, turn: FailurePolicy, watch: SweepObserver) -> bool:
    """Whether a job has its row now."""
    if ledger.state(job) != TO_DO:
        watch.settled(job, ledger.row(job), ran=False)
        return True
    baseline = None
    if job.baseline:
        baseline = ledger.done_row(job.baseline)
        if baseline is None and not ledger.has_none(job.baseline):
            return False
    with ledger.folder.claim(job.id) as mine:
        if not mine:
            return False
        ledger.refresh()
        if ledger.state(job) == TO_DO:
            with _marked(ledger.folder, job, turn) as attempt:
                _run(job, baseline, attempt, ledger, run, turn, watch)
            ledger.refresh()
            return True
    watch.settled(job, ledger.row(job), ran=False)
    return True


def _run(
    job: Job, baseline: Row | None, attempt: int, ledger: SweepStatus, run: RunJob, turn: FailurePolicy, watch: SweepObserver
) -> None:
    """Run a job; whatever goes wrong with it becomes its row."""
    watch.begins(job)
    try:
        if attempt > turn.deaths:
            raise RunError(f"{turn.deaths} workers died while they ran it; they may have been out of memory")
        if job.refused:
            raise job.refused
        if job.baseline and baseline is None:
            raise RunError(f"its full baseline ({job.baseline}) has no result")
        row = run(job, baseline)
        if row["id"] != job.id:
            raise RunError("data or weights changed while the sweep ran; run it again")
    except StorageError:
        raise
    except Exception as error:
        row = record_failure(job, error, ledger.folder)
    watch.settled(job, row, ran=True)


def record_failure(job: Job, error: Exception, folder: ResultsFolder) -> Row:
    """Store the row of a job that has no result, and how that came in a log.

    Raises:
        StorageError: the folder takes no more.
    """
    from datetime import UTC, datetime

    row = {**job.failure_row(error, failure_reason(error)), "finished_at": datetime.now(UTC).isoformat(timespec="seconds")}
    if not isinstance(error, NotApplicable):
        log = Path("logs") / f"{job.id}.log"
        told = "".join(traceback.format_exception(error))
        write_atomic(folder.path / log, f"{row['finished_at']} {job.label}\n{told}")
        row["log"] = str(log)
    folder.append(row)
    return row


def failure_reason(error: BaseException) -> str:
    """An error in one line; one that nobody phrased for people has its type before it."""
    text = " ".join(str(error).split())[:300]
    return text if text and isinstance(error, (UsageError, RunError)) else f"{type(error).__name__}: {text}".removesuffix(": ")


class RunningMarker:
    """What a worker does just now, in the running job's mark, for those who look on from elsewhere."""

    def __init__(self, folder: ResultsFolder) -> None:
        """Mark jobs of this folder."""
        self._folder = folder
        self._path: Path | None = None
        self._told_at = 0.0

    def begins(self, job: Job) -> None:
        """Its mark is there already."""
        self._path = marker_path(self._folder, job)

    def settled(self, job: Job, row: Row | None, ran: bool) -> None:
        """Nothing runs."""
        self._path = None

    def phase(self, label: str, total: int) -> ReportProgress:
        """Tell of a stretch of work."""
        self._tell({"phase": label, "done": 0, "total": total})
        return lambda done, note="": self._tell({"phase": label, "done": done, "total": total})

    def _tell(self, now: Row) -> None:
        if self._path and time.monotonic() - self._told_at >= TELL_SECONDS:
            self._told_at = time.monotonic()
            _write_marker(self._path, {**read_marker(self._path), **now})


@contextlib.contextmanager
def _marked(folder: ResultsFolder, job: Job, turn: FailurePolicy) -> Iterator[int]:
    """Leave a mark while a job is run: one that is found later tells of a worker's death. The number of this attempt."""
    path = marker_path(folder, job)
    before = read_marker(path)
    attempt = before.get("attempt", 0) + 1 if before.get("token") == turn.token else 1
    _write_marker(path, {"token": turn.token, "attempt": attempt, "worker": os.getpid()})
    try:
        yield attempt
    finally:
        with contextlib.suppress(OSError):
            path.unlink()


def marker_path(folder: ResultsFolder, job: Job) -> Path:
    """Where the mark of a running job is."""
    return folder.path / ".locks" / f"{job.id}.json"


def read_marker(path: Path) -> Row:
    """What it says; nothing where there is none."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write_marker(path: Path, mark: Row) -> None:
    """Replace it whole; only its holder writes it, and without it the sweep works too."""
    with contextlib.suppress(OSError):
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(mark), "utf-8")
        temporary.replace(path)
