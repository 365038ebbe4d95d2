"""The jobs of a sweep: its points with labels, in running order, their states by the stored rows,
and their run, in this process or by workers that a launcher starts. Imports no torch.
"""

import gc
import time
import traceback
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from ulskip_cli.core import interruption
from ulskip_cli.core.config_schema import Config
from ulskip_cli.core.errors import NotApplicable, RunError, StorageError, UsageError
from ulskip_cli.core.files import read_jsonl, write_atomic
from ulskip_cli.core.progress import ProgressCallback
from ulskip_cli.experiments.preflight import ResolvedPoint, Resolver
from ulskip_cli.experiments.record import (
    DONE,
    FAILED,
    NOT_APPLICABLE,
    Point,
    Record,
    Row,
    flattened,
)
from ulskip_cli.experiments.results import ResultsFolder
from ulskip_cli.experiments.sweep.launchers import POOLS, worker_command

if TYPE_CHECKING:
    from ulskip_cli.experiments.runner import Session

TO_DO = "to do"
SHARED = ("submitit", "ray")  # launchers with workers on other machines, whose rows count too
POLL_SECONDS = 0.3
_UNLABELLED = ("sweep", "launcher", "name", "results_dir")


@dataclass(frozen=True)
class Job:
    """One job of a sweep: a point, or a full baseline that points compare with."""

    config: Config
    id: str  # of its row; the configuration's identity if the point is refused
    label: str  # distinguishes the point within the sweep
    point: ResolvedPoint | None = None  # None if the point is refused
    refused: UsageError | None = None  # the reason why the point cannot run
    requested: bool = True  # False for a baseline that only other points need

    @property
    def baseline(self) -> str | None:
        """The identifier of the baseline job that must finish before this job, if any."""
        return self.point.baseline.run_id if self.point and self.point.baseline else None

    @property
    def identity(self) -> Point:
        """The settings that identify the job; they are equal whether the run finished or failed."""
        return self.point.identity if self.point else Point.of(self.config, self.id)

    def failure_record(self, error: BaseException) -> Record:
        """Return the record of a job that failed or is not applicable."""
        status = NOT_APPLICABLE if isinstance(error, NotApplicable) else FAILED
        return Record.joined(self.identity, status=status, reason=failure_reason(error))


def failure_reason(error: BaseException) -> str:
    """Return an error as one line; the line of an unexpected error begins with the error's type."""
    text = " ".join(str(error).split())[:300]
    expected = text and isinstance(error, (UsageError, RunError))
    return text if expected else f"{type(error).__name__}: {text}".removesuffix(": ")


def make_jobs(configs: Sequence[Config], resolver: Resolver | None = None) -> list[Job]:
    """Resolve the points of a sweep into jobs, in running order; raise UsageError if every point is
    refused.

    Points of one model follow each other, so that its weights are loaded once, and a baseline comes
    before its points.
    """
    resolver, varying = resolver or Resolver(), _varying(configs)
    models = [str(config.model) for config in configs]
    jobs: dict[str, Job] = {}
    for config in sorted(configs, key=lambda config: models.index(str(config.model))):
        label = _label(config, varying)
        try:
            point = resolver.resolve(config)
            job = Job(config, point.run_id, label, point)
        except UsageError as error:
            job = Job(config, config.identity, label, refused=error)
        if job.point and (full := job.point.baseline):
            baseline = Job(
                full.config, full.run_id, _label(full.config, varying), full, requested=False
            )
            jobs.setdefault(full.run_id, baseline)
        jobs[job.id] = replace(jobs.get(job.id, job), requested=True)
    refused = [job.refused for job in jobs.values() if job.requested]
    if first := all(refused) and refused[0]:
        raise first
    return list(jobs.values())


def _varying(points: Sequence[Config]) -> list[str]:
    """Return the keys that vary. A key of a config group varies only if points with the same choice
    in the group differ.
    """
    values: dict[tuple[str, str], set[str]] = {}  # by key and by choice in its group
    for point in points:
        flat = _flat(point)
        for key, value in flat.items():
            choice = "" if key.endswith(".name") else str(flat.get(f"{key.partition('.')[0]}.name"))
            values.setdefault((key, choice), set()).add(str(value))
    varying = dict.fromkeys(key for (key, _), different in values.items() if len(different) > 1)
    return [key for key in varying if key not in ("ratio", "strategy.name")]


def _flat(config: Config) -> Row:
    values = config.plain().items()
    return dict(flattened({key: value for key, value in values if key not in _UNLABELLED}))


def _label(config: Config, varying: Sequence[str]) -> str:
    flat = _flat(config)
    words = [config.strategy.name]
    if config.strategy.follows_ratio:
        words.append(f"ratio {config.ratio:g}")
    for key in varying:
        if flat.get(key) is not None:
            name = key.removesuffix(".name").rpartition(".")[2].removesuffix("_size")
            words.append(f"{name} {flat[key]}")
    return " ".join(words)


@dataclass
class SweepOutcome:
    """The records and failures of a grid's points."""

    num_requested: int
    records: dict[str, Record] = field(default_factory=dict)  # by identifier, with baselines
    failures: list[str] = field(default_factory=list)  # one line for every failed point
    num_run: int = 0  # with baselines that only other points need; 0: as many as requested

    def as_json(self) -> Row:
        """Return the object that `--json` prints: the row of a single point, or all rows and
        failures.
        """
        rows = [record.to_row() for record in self.records.values()]
        return rows[-1] if self.num_requested == 1 else {"rows": rows, "failed": self.failures}

    def check(self) -> None:
        """Raise RunError if a point failed."""
        if self.failures:
            raise RunError(
                f"{len(self.failures)} of {self.num_run or self.num_requested} points failed, the"
                f" first: {self.failures[0]}"
            )


class SweepObserver(ProgressCallback):
    """Receives the events of a sweep, e.g. the terminal's display."""

    def job_settled(self, job: Job, record: Record, is_new: bool) -> None:
        """Handle the record of a job; `is_new` is False if it was finished before the sweep."""


@dataclass
class Sweep:
    """The jobs of a results folder: their states by the stored rows, and their run. Without an
    observer, the processors of machines are compared alone, which needs no torch.
    """

    jobs: Sequence[Job]  # a baseline before its points
    observer: SweepObserver | None = None
    _: KW_ONLY
    force: bool = False  # run finished points again: only rows that this sweep appends count
    fail_fast: bool = False  # stop at the first failure
    # in a worker: the number of rows when its sweep began; None: this process runs the sweep
    since: int | None = None
    # words of the command line that workers run; None: this process runs the jobs
    words: Sequence[str] | None = None

    def __post_init__(self) -> None:
        config = self.jobs[0].config
        self.folder, self._launcher = ResultsFolder.of(config), config.launcher
        self._settled: dict[str, Record] = {}
        self._records: dict[str, list[tuple[int, Record]]] = {}
        count = self.refresh()
        self._began = count if self.since is None else self.since

    def run(self) -> SweepOutcome:
        """Run all jobs that are not finished, and return the records of all jobs.

        Raises UsageError if the folder cannot be written or the launcher's package is missing,
        StorageError if a result cannot be stored, and RunError if workers end without finishing all
        points.
        """
        jobs, observer, is_worker = self.jobs, self.observer, self.since is not None
        assert observer
        self.folder.check_writable()
        for job in jobs if self.force and not is_worker else ():
            self.folder.checkpoint_path(job.id).unlink(missing_ok=True)
        self.update(is_new=False)
        if self.words is not None and not self.to_do:
            observer.note("nothing to run: all points are finished; --force measures them again")
        if self._launcher.name == "inline" or is_worker or self.words is None:
            self._run_here(observer)
        elif unfinished := self.to_do:
            command, logs = worker_command(self.words, self._began), self.folder.path / "logs"
            start = POOLS[self._launcher.name]
            with start(self._launcher, command, logs, len(unfinished)) as alive:
                while alive():
                    time.sleep(POLL_SECONDS)
                    self.update()
            self.update()
            if self.to_do and not (self.fail_fast and self.failures()):
                raise RunError(
                    f"{len(self.to_do)} of {len(jobs)} points did not run, because all workers"
                    f" ended (perhaps out of memory); see {logs}, and run the same command again to"
                    " continue"
                )
        records = {job.id: self._settled[job.id] for job in jobs if job.id in self._settled}
        requested = sum(job.requested for job in jobs)
        return SweepOutcome(requested, records, self.failures(), len(jobs))

    def refresh(self) -> int:
        """Read the rows again, and return their number."""
        rows = self.folder.rows()
        self._records = {}
        for index, record in enumerate(rows):
            self._records.setdefault(record.id, []).append((index, record))
        return len(rows)

    def record(self, job: Job) -> Record | None:
        """Return the record that settles a job, or None if the job has to run.

        Complete runs of earlier sweeps settle a job, but failed runs do not.
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
        """Return `done`, `n/a`, `failed` or `to do`, and the reason or the progress; a refused job
        counts as settled.
        """
        settled = self.record(job)
        if settled and settled.is_done:
            return DONE, ""
        if job.refused:
            record = job.failure_record(job.refused)
            return record.status, record.reason or ""
        num_batches = len(read_jsonl(self.folder.checkpoint_path(job.id))) - 1
        notes = [f"finished batches: {num_batches}"] if num_batches > 0 else []
        for _, newest in self._records.get(job.id, [])[-1:]:
            notes += [f"failed before: {newest.reason}"] if newest.status == FAILED else []
        return TO_DO, "; ".join(notes)

    def _counts(self, record: Record) -> bool:
        """Return True if a row of an earlier sweep counts; in a sweep of one process, the number of
        threads has to be equal too.
        """
        if self.force:
            return False
        if self._launcher.name in SHARED:
            return True
        also = ["threads"] * (self._launcher.name == "inline")
        return record.is_from_here(*also, quick=self.observer is None)

    @property
    def to_do(self) -> list[Job]:
        """The jobs that have no record yet."""
        return [job for job in self.jobs if job.id not in self._settled]

    def failures(self) -> list[str]:
        """Return one line for every job that failed in this sweep."""
        records = [(job.label, self._settled.get(job.id)) for job in self.jobs]
        return [
            f"{label}: {record.reason}"
            for label, record in records
            if record and record.status == FAILED
        ]

    def update(self, is_new: bool = True) -> None:
        """Report the jobs that this or another process has recorded since the last call."""
        self.refresh()
        for job in self.to_do:
            if self.observer and (record := self.record(job)):
                self._settled[job.id] = record
                self.observer.job_settled(job, record, is_new)

    def _run_here(self, observer: SweepObserver) -> None:
        """Run the jobs that no other process has claimed, and wait for the others.

        A job that was claimed before and has no record comes last, because it may have ended the
        process that ran it. Raises StorageError if the results folder cannot be written.
        """
        if not self.to_do:
            return
        from ulskip_cli.experiments.runner import Session

        folder, session = self.folder, Session(observer)
        order = sorted(self.to_do, key=lambda job: folder.was_claimed(job.id))
        while order:
            for job in order:
                if self.fail_fast and self.failures():
                    return
                if job.baseline and job.baseline not in self._settled:
                    continue
                with folder.claim(job.id) as is_claimed:
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
        """Run a job; store a failure as its record, with the traceback in a file."""
        from ulskip_cli.experiments import runner
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
            runner.run_point(job.point, session, baseline)
            return
        except StorageError:
            raise
        except Exception as error:
            folder = self.folder
            finished_at = datetime.now(UTC).isoformat(timespec="seconds")
            record = job.failure_record(error).replace(finished_at=finished_at)
            if not isinstance(error, NotApplicable):
                log = folder.path / "logs" / f"{job.id}.log"
                details = "".join(traceback.format_exception(error))
                write_atomic(log, f"{finished_at} {job.label}\n{details}")
                record = record.replace(log=str(log.relative_to(folder.path)))
            folder.append(record)
        gc.collect()  # outside the handler, because the traceback may hold memory
        free_unused_memory()
