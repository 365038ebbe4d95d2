"""`Job` and `Ledger`: the jobs of a sweep, which are its points with labels in running order, and
which of them the rows of a results folder settle. It runs nothing, without torch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from ulskip_cli.core.config import baseline_config
from ulskip_cli.core.config_schema import Config
from ulskip_cli.core.errors import NotApplicable, RunError, UsageError
from ulskip_cli.core.files import JsonObject, read_jsonl
from ulskip_cli.core.progress import ProgressCallback
from ulskip_cli.experiments.point import Point, Resolver
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

TO_DO = "to do"
SHARED = ("submitit", "ray")  # launchers with workers on other machines, whose rows count too


@dataclass(frozen=True)
class Job:
    """One job of a sweep: a point, or a full baseline that points compare with."""

    config: Config
    settings: Settings  # what its row stores also if the run fails
    point: Point | None = None  # None if the point is refused
    refusal: UsageError | None = None  # the reason why the point cannot run
    requested: bool = True  # False for a baseline that only other points need
    label: str = ""  # distinguishes the point within the sweep

    @property
    def id(self) -> str:
        """The identifier of its row; that of the configuration if the point is refused."""
        return self.settings.id

    @property
    def baseline_id(self) -> str | None:
        """The identifier of the baseline job that must finish before this job, if any."""
        return self.settings.baseline_id

    def failure_record(self, error: BaseException) -> Record:
        """Return the record of a job that failed or is not applicable."""
        outcome = Outcome(
            status=NOT_APPLICABLE if isinstance(error, NotApplicable) else FAILED,
            reason=failure_reason(error),
        )
        return Record.joined(self.settings, outcome)


def failure_reason(error: BaseException) -> str:
    """Return an error as one line; the line of an unexpected error begins with the error's type."""
    text = " ".join(str(error).split())[:300]
    if text and isinstance(error, (UsageError, RunError)):
        return text
    return f"{type(error).__name__}: {text}".removesuffix(": ")


def make_jobs(
    configs: Sequence[Config], resolver: Resolver | None = None, command: str = "run"
) -> list[Job]:
    """Resolve the points of a sweep or a benchmark into jobs, in running order; raise UsageError if
    every point is refused.

    Points of one model follow each other, so that its weights are loaded once, and a baseline comes
    before its points. A benchmark also compares the full model of each engine with that of the
    first.
    """
    resolver, first_engine = resolver or Resolver(), configs[0].engine.name
    models = [config.model for config in configs]
    jobs: dict[str, Job] = {}
    for config in sorted(configs, key=lambda config: models.index(config.model)):
        for job in _jobs_of(config, resolver, command, first_engine):
            # An earlier point may have added this job as its baseline, or asked for it.
            requested = job.requested or (job.id in jobs and jobs[job.id].requested)
            jobs[job.id] = replace(jobs.get(job.id, job), requested=requested)
    refusals = [job.refusal for job in jobs.values() if job.requested]
    if refusals[0] and all(refusals):
        raise refusals[0]
    labels = point_labels([job.settings for job in jobs.values()])
    return [replace(job, label=label) for job, label in zip(jobs.values(), labels, strict=True)]


def _jobs_of(config: Config, resolver: Resolver, command: str, first_engine: str) -> Iterator[Job]:
    """Yield the job of a configuration after that of its baseline, and in a benchmark the full
    model of its engine, if that is not the first one.
    """
    try:
        point = resolver.resolve(config, command)
    except UsageError as error:
        settings = Settings.of(config, config.identity(command), command)
        yield Job(config, settings, refusal=error)
        return
    if full := point.baseline:
        yield Job(full.config, full.settings, full, requested=False)
    yield Job(config, point.settings, point)
    if command == "bench" and not config.baseline_engine:
        full_config = baseline_config(config).replace(baseline_engine=first_engine)
        if full_config.crosses_engines:
            yield from _jobs_of(full_config, resolver, command, first_engine)


class SweepObserver(ProgressCallback):
    """Receives the events of a sweep, e.g. the terminal's display."""

    def job_settled(self, job: Job, record: Record, is_new: bool) -> None:
        """Handle the record of a job; `is_new` is False if it was finished before the sweep."""


class JobState(NamedTuple):
    """The state of a job: `done`, `n/a`, `failed` or `to do`, with its reason or progress."""

    state: str
    note: str


class Ledger:
    """The jobs of a sweep, a baseline before its points, and the rows that settle them.

    A complete row settles its job if it is new, or if it was measured where its times are those of
    this sweep. A failed row settles its job only if it is new, and a point that is not applicable
    stays settled. Rows are new if they were appended since the sweep began.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        *,
        force: bool = False,
        quick: bool = False,
        since: int | None = None,
    ) -> None:
        """Read the rows in the folder of the jobs. With `force`, only new rows count. `quick`
        compares the processors of machines alone, which needs no torch. `since` is the number of
        rows when the sweep began, None if it begins now.
        """
        config = jobs[0].config
        self.jobs, self.folder, self.launcher = jobs, ResultsFolder.of(config), config.launcher
        self.force = force
        self._quick = quick
        self.settled: dict[str, Record] = {}  # the records of jobs, by id; `update` adds them
        # by id: the number of each row in the file, and its record, oldest first
        self._rows: dict[str, list[tuple[int, Record]]] = {}
        num_rows = self.read_rows()
        self.began = num_rows if since is None else since

    @property
    def to_do(self) -> list[Job]:
        """The jobs that have no record yet."""
        return [job for job in self.jobs if job.id not in self.settled]

    def read_rows(self) -> int:
        """Read the rows of the folder again, and return their number."""
        rows = self.folder.rows()
        self._rows = {}
        for number, record in enumerate(rows):
            self._rows.setdefault(record.id, []).append((number, record))
        return len(rows)

    def update(self, observer: SweepObserver, is_new: bool = True) -> None:
        """Read the rows again, and report the jobs that are settled since the last call."""
        self.read_rows()
        for job in self.to_do:
            if record := self.record(job):
                self.settled[job.id] = record
                observer.job_settled(job, record, is_new)

    def record(self, job: Job) -> Record | None:
        """Return the record that settles a job, or None if the job has to run."""
        rows = self._rows.get(job.id, [])
        for number, record in reversed(rows):
            counts = number >= self.began or self._counts_from_before(record)
            if counts and self.folder.is_complete(record):
                return record
        if not rows or rows[-1][1].is_done:
            return None
        number, newest = rows[-1]
        stays_refused = job.refusal is not None and newest.status == NOT_APPLICABLE
        return newest if number >= self.began or stays_refused else None

    def state(self, job: Job) -> JobState:
        """Return whether a job is done, refused or to do, with the reason."""
        record = self.record(job)
        if record and record.is_done:
            return JobState(DONE, "")
        if job.refusal:
            refused = job.failure_record(job.refusal)
            return JobState(refused.status, refused.reason or "")
        notes = [self.why_again(job)]
        # A line for each batch, below one that says which code and machine generated them.
        num_batches = len(read_jsonl(self.folder.checkpoint_path(job.id))) - 1
        if num_batches > 0:
            notes.insert(0, f"finished batches: {num_batches}")
        return JobState(TO_DO, "; ".join(filter(None, notes)))

    def why_again(self, job: Job) -> str:
        """Return the reason why a job that has a row is still to do; empty without a row."""
        records = [record for _, record in self._rows.get(job.id, [])]
        if not records:
            return ""
        if records[-1].status == FAILED:
            return f"failed before: {records[-1].reason}"
        complete = [record for record in records if self.folder.is_complete(record)]
        if complete and self.force:
            return "again, because of --force"
        if complete:
            where = complete[-1].environment
            machine = where.machine if where else "unknown"
            return f"again, because the stored row is of another machine or setting, {machine}"
        if any(record.is_done for record in records):
            return "again, because the file of its answers is missing"
        return ""

    def outcome(self) -> "SweepOutcome":
        """Return the records of all jobs, which must be settled."""
        records = {job.id: self.settled[job.id] for job in self.jobs}
        failures = [
            f"{job.label}: {records[job.id].reason}"
            for job in self.jobs
            if records[job.id].status == FAILED
        ]
        return SweepOutcome(sum(job.requested for job in self.jobs), records, failures)

    def _counts_from_before(self, record: Record) -> bool:
        """Return True if a row of an earlier sweep counts. In a sweep of one process, the number of
        threads has to be equal too.
        """
        if self.force:
            return False
        if self.launcher.name in SHARED:
            return True
        facts = ("threads",) if self.launcher.name == "inline" else ()
        return record.is_from_here(*facts, quick=self._quick)


class SweepOutcome(NamedTuple):
    """The records and failures of a grid's points."""

    num_requested: int
    records: dict[str, Record]  # by id, with baselines
    failures: list[str]  # one line for every failed point

    def as_json(self) -> JsonObject:
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
