"""The jobs of a sweep: its points with labels, in running order, their states by the stored rows,
and their run, in this process or by workers that a launcher starts. Imports no torch.
"""

import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import TYPE_CHECKING

from ulskip_cli.core import interruption
from ulskip_cli.core.config import baseline_config
from ulskip_cli.core.config_schema import Config
from ulskip_cli.core.errors import NotApplicable, RunError, StorageError, UsageError
from ulskip_cli.core.files import Table, read_jsonl, timestamp, write_atomic
from ulskip_cli.core.progress import ProgressCallback
from ulskip_cli.experiments.launchers import POOLS
from ulskip_cli.experiments.preflight import ResolvedPoint, Resolver
from ulskip_cli.experiments.record import (
    DONE,
    FAILED,
    NOT_APPLICABLE,
    Outcome,
    Record,
    Settings,
)
from ulskip_cli.experiments.results import ResultsFolder
from ulskip_cli.experiments.settings import point_labels

if TYPE_CHECKING:
    from ulskip_cli.experiments.runner import Session

TO_DO = "to do"
SHARED = ("submitit", "ray")  # launchers with workers on other machines, whose rows count too
POLL_SECONDS = 0.3


@dataclass(frozen=True)
class Job:
    """One job of a sweep: a point, or a full baseline that points compare with."""

    config: Config
    identity: Settings  # the settings that its row stores, also if the run fails
    point: ResolvedPoint | None = None  # None if the point is refused
    refused: UsageError | None = None  # the reason why the point cannot run
    requested: bool = True  # False for a baseline that only other points need
    label: str = ""  # distinguishes the point within the sweep

    @property
    def id(self) -> str:
        """The identifier of its row; that of the configuration if the point is refused."""
        return self.identity.id

    @property
    def baseline(self) -> str | None:
        """The identifier of the baseline job that must finish before this job, if any."""
        return self.identity.baseline_id

    def failure_record(self, error: BaseException) -> Record:
        """Return the record of a job that failed or is not applicable."""
        outcome = Outcome(
            status=NOT_APPLICABLE if isinstance(error, NotApplicable) else FAILED,
            reason=failure_reason(error),
        )
        return Record.joined(self.identity, outcome)


def failure_reason(error: BaseException) -> str:
    """Return an error as one line; the line of an unexpected error begins with the error's type."""
    text = " ".join(str(error).split())[:300]
    expected = text and isinstance(error, (UsageError, RunError))
    return text if expected else f"{type(error).__name__}: {text}".removesuffix(": ")


def make_jobs(
    configs: Sequence[Config], resolver: Resolver | None = None, command: str = "run"
) -> list[Job]:
    """Resolve the points of a sweep or a benchmark into jobs, in running order; raise UsageError if
    every point is refused.

    Points of one model follow each other, so that its weights are loaded once, and a baseline comes
    before its points. A benchmark also compares the full model of each engine with that of the
    first.
    """
    resolver = resolver or Resolver()
    models = [config.model for config in configs]
    jobs: dict[str, Job] = {}
    waiting = sorted(configs, key=lambda config: models.index(config.model))
    while waiting:
        config = waiting.pop(0)
        try:
            point = resolver.resolve(config, command)
            job = Job(point.config, point.identity, point)
        except UsageError as error:
            identity = Settings.of(config, config.identity(command), command)
            job = Job(config, identity, refused=error)
        if job.point and (full := job.point.baseline):
            baseline = Job(full.config, full.identity, full, requested=False)
            jobs.setdefault(full.run_id, baseline)
        # An earlier point may have added this job as its baseline.
        jobs[job.id] = replace(jobs.get(job.id, job), requested=True)
        if job.point and command == "bench" and not config.baseline_engine:
            # The full model of this engine, compared with that of the first, comes next.
            full_config = baseline_config(config).replace(baseline_engine=configs[0].engine.name)
            waiting[:0] = [full_config] * full_config.crosses_engines
    refused = [job.refused for job in jobs.values() if job.requested]
    if refused[0] and all(refused):
        raise refused[0]
    labels = point_labels([job.identity for job in jobs.values()])
    return [replace(job, label=label) for job, label in zip(jobs.values(), labels, strict=True)]


@dataclass
class SweepOutcome:
    """The records and failures of a grid's points."""

    num_requested: int
    records: dict[str, Record] = field(default_factory=dict)  # by identifier, with baselines
    failures: list[str] = field(default_factory=list)  # one line for every failed point

    def as_json(self) -> Table:
        """Return the object that `--json` prints: the row of a single point, or all rows and
        failures.
        """
        # Of a single point, the last row is its own; its baseline's comes before.
        rows = [record.to_row() for record in self.records.values()]
        return rows[-1] if self.num_requested == 1 else {"rows": rows, "failed": self.failures}

    def check(self) -> None:
        """Raise RunError if a point failed."""
        if self.failures:
            raise RunError(
                f"{len(self.failures)} of {len(self.records)} points failed, the first:"
                f" {self.failures[0]}"
            )


class SweepObserver(ProgressCallback):
    """Receives the events of a sweep, e.g. the terminal's display."""

    def job_settled(self, job: Job, record: Record, is_new: bool) -> None:
        """Handle the record of a job; `is_new` is False if it was finished before the sweep."""


@dataclass
class Sweep:
    """The jobs of a results folder: their states by the stored rows, and their run."""

    jobs: Sequence[Job]  # a baseline before its points
    observer: SweepObserver = field(default_factory=SweepObserver)
    _: KW_ONLY
    quick: bool = False  # compare the processors of machines alone, which needs no torch
    force: bool = False  # run finished points again: only rows that this sweep appends count
    raises: bool = False  # raise the error of a job that fails, and store no row of it
    # in a worker: the number of rows when its sweep began; None: this process runs the sweep
    since: int | None = None
    # words of the command line that workers run; with (), this process runs the jobs; with None, it
    # also has no notes about finished points, which name options of the command line
    worker_words: Sequence[str] | None = None

    def __post_init__(self) -> None:
        config = self.jobs[0].config
        self.folder, self._launcher = ResultsFolder.of(config), config.launcher
        self._settled: dict[str, Record] = {}
        # by identifier: the number of each row in the file, and its record, oldest first
        self._records: dict[str, list[tuple[int, Record]]] = {}
        count = self.refresh()
        # Rows from this number on are new: this sweep appended them.
        self._began = count if self.since is None else self.since

    def run(self) -> SweepOutcome:
        """Run all jobs that are not finished, and return the records of all jobs.

        Raises UsageError if the folder cannot be written or the launcher's package is missing,
        StorageError if a result cannot be stored, and RunError if workers end without finishing all
        points.
        """
        jobs, observer, is_worker = self.jobs, self.observer, self.since is not None
        self.folder.check_writable()
        # A forced run starts over: it does not resume at stored batches.
        for job in jobs if self.force and not is_worker else ():
            self.folder.checkpoint_path(job.id).unlink(missing_ok=True)
        self.update(is_new=False)
        if self.worker_words is not None and not self.to_do:
            observer.note("nothing to run: all points are finished; --force measures them again")
        for job in self.to_do if self.worker_words is not None and not self.force else ():
            if reason := self.why_again(job):
                observer.note(f"{job.label}: {reason}")
        if self._launcher.name == "inline" or is_worker or not self.worker_words:
            self._run_here()
        elif unfinished := self.to_do:
            command = [sys.executable, "-m", "ulskip_cli", "sweep", *self.worker_words]
            command += ["--since", str(self._began)]
            logs = self.folder.path / "logs"
            start = POOLS[self._launcher.name]
            with start(self._launcher, command, logs, len(unfinished)) as alive:
                while alive():
                    time.sleep(POLL_SECONDS)
                    self.update()
            self.update()
            if self.to_do:
                raise RunError(
                    f"{len(self.to_do)} of {len(jobs)} points did not run, because all workers"
                    f" ended (perhaps out of memory); see {logs}, and run the same command again to"
                    " continue"
                )
        records = {job.id: self._settled[job.id] for job in jobs}
        failures = [
            f"{job.label}: {records[job.id].reason}"
            for job in jobs
            if records[job.id].status == FAILED
        ]
        return SweepOutcome(sum(job.requested for job in jobs), records, failures)

    def refresh(self) -> int:
        """Read the rows again, and return their number."""
        rows = self.folder.rows()
        self._records = {}
        for index, record in enumerate(rows):
            self._records.setdefault(record.id, []).append((index, record))
        return len(rows)

    def record(self, job: Job) -> Record | None:
        """Return the record that settles a job, or None if the job has to run.

        Complete runs of this sweep settle it, and those of earlier sweeps that count here. A failed
        run settles it only within this sweep, but a point that is not applicable stays settled.
        """
        records = self._records.get(job.id)
        if not records:
            return None
        for index, record in reversed(records):
            is_new = index >= self._began
            if self.folder.is_complete(record) and (is_new or self._counts(record)):
                return record
        index, newest = records[-1]
        counts = index >= self._began or (job.refused and newest.status == NOT_APPLICABLE)
        return newest if counts and not newest.is_done else None

    def describe(self, job: Job) -> tuple[str, str]:
        """Return `done`, `n/a`, `failed` or `to do`, and the reason, also of doing it again, or the
        progress; a refused job counts as settled.
        """
        settled = self.record(job)
        if settled and settled.is_done:
            return DONE, ""
        if job.refused:
            record = job.failure_record(job.refused)
            return record.status, record.reason or ""
        # the first line has the origin
        num_batches = len(read_jsonl(self.folder.checkpoint_path(job.id))) - 1
        notes = [f"finished batches: {num_batches}"] if num_batches > 0 else []
        return TO_DO, "; ".join(filter(None, [*notes, self.why_again(job)]))

    def why_again(self, job: Job) -> str:
        """Return the reason why a job that has a row is still to do; empty without a row."""
        records = [record for _, record in self._records.get(job.id, [])]
        if records and records[-1].status == FAILED:
            return f"failed before: {records[-1].reason}"
        stored = [record for record in records if self.folder.is_complete(record)]
        if stored and self.force:
            return "again, because of --force"
        if stored:
            where = stored[-1].environment
            machine = where.machine if where else "unknown"
            return f"again, because the stored row is of another machine or setting, {machine}"
        is_done = any(record.is_done for record in records)
        return "again, because the file of its answers is missing" if is_done else ""

    def _counts(self, record: Record) -> bool:
        """Return True if a row of an earlier sweep counts; in a sweep of one process, the number of
        threads has to be equal too.
        """
        if self.force:
            return False
        if self._launcher.name in SHARED:
            return True
        also = ["threads"] * (self._launcher.name == "inline")
        return record.is_from_here(*also, quick=self.quick)

    @property
    def to_do(self) -> list[Job]:
        """The jobs that have no record yet."""
        return [job for job in self.jobs if job.id not in self._settled]

    def update(self, is_new: bool = True) -> None:
        """Report the jobs that this or another process has recorded since the last call."""
        self.refresh()
        for job in self.to_do:
            if record := self.record(job):
                self._settled[job.id] = record
                self.observer.job_settled(job, record, is_new)

    def _run_here(self) -> None:
        """Run the jobs that no other process has claimed, and wait for the others.

        A job that was claimed before and has no record comes last, because it may have ended the
        process that ran it. Raises StorageError if the results folder cannot be written.
        """
        if not self.to_do:
            return
        from ulskip_cli.experiments.runner import Session

        folder, session = self.folder, Session(self.observer)
        order = sorted(self.to_do, key=lambda job: folder.lock_path(job.id).exists())
        while order:
            for job in order:
                if job.baseline and job.baseline not in self._settled:
                    continue
                with folder.hold(job.id, wait=False) as is_claimed:
                    self.update()
                    if is_claimed and job.id not in self._settled:
                        self._run_job(job, session)
                        self.update()
            left = [job for job in order if job.id not in self._settled]
            if len(left) == len(order):
                time.sleep(POLL_SECONDS)
                self.update()
            order = left

    def _run_job(self, job: Job, session: "Session") -> None:
        """Run a job; store a failure as its record."""
        from ulskip_cli.experiments.runner import run_point
        from ulskip_cli.inference.batching import free_unused_memory

        interruption.raise_if_interrupted()
        baseline = self._settled[job.baseline] if job.baseline else None
        try:
            if baseline and not baseline.is_done:
                raise RunError(
                    f"expected a result of the full baseline {baseline.id}, got none; fix that run"
                    " first"
                )
            if job.refused:
                raise job.refused
            assert job.point
            run_point(job.point, session, baseline)
            return
        except StorageError:
            raise
        except Exception as error:
            if self.raises:
                raise
            self._store_failure(job, error)
        free_unused_memory()  # outside the handler, because the traceback may hold memory

    def _store_failure(self, job: Job, error: Exception) -> None:
        """Store the record of a failed job, with the traceback in a file."""
        folder, finished_at = self.folder, timestamp()
        record = job.failure_record(error).replace(finished_at=finished_at)
        if not isinstance(error, NotApplicable):
            log = folder.path / "logs" / f"{job.id}.log"
            details = "".join(traceback.format_exception(error))
            write_atomic(log, f"{finished_at} {job.label}\n{details}")
            record = record.replace(log=str(log.relative_to(folder.path)))
        folder.append(record)
