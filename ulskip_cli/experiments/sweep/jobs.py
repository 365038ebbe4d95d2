"""The jobs of a sweep: its points with labels, in running order, and their states by the stored
rows. Imports no torch.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ulskip_cli.core import environment
from ulskip_cli.core.config_schema import Config
from ulskip_cli.core.errors import NotApplicable, RunError, UsageError
from ulskip_cli.core.files import read_jsonl
from ulskip_cli.experiments.preflight import ResolvedPoint, Resolver
from ulskip_cli.experiments.record import DONE, FAILED, NOT_APPLICABLE, Point, Record, Row
from ulskip_cli.experiments.results import ResultsFolder, parse

TO_DO = "to do"
SHARED = ("submitit", "ray")  # launchers with workers on other machines, whose rows count too
_UNLABELLED = ("sweep", "launcher", "name", "results_dir")


@dataclass(frozen=True)
class Job:
    """One job of a sweep: a point, or a full baseline that points compare with."""

    config: Config
    id: str  # of its row; the configuration's identity if data or weights cannot be read
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
            job = Job(config, resolver.fallback_id(config), label, refused=error)
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
        flat = dict(_flat(point.plain()))
        for key, value in flat.items():
            choice = "" if key.endswith(".name") else str(flat.get(f"{key.partition('.')[0]}.name"))
            values.setdefault((key, choice), set()).add(str(value))
    varying = dict.fromkeys(key for (key, _), different in values.items() if len(different) > 1)
    return [key for key in varying if key not in ("ratio", "strategy.name")]


def _flat(node: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in node.items():
        if isinstance(value, dict) and key not in _UNLABELLED:
            yield from _flat(value, f"{prefix}{key}.")
        elif prefix or key not in _UNLABELLED:
            yield f"{prefix}{key}", value


def _label(config: Config, varying: Sequence[str]) -> str:
    flat = dict(_flat(config.plain()))
    words = [config.strategy.name]
    if config.strategy.follows_ratio:
        words.append(f"ratio {config.ratio:g}")
    for key in varying:
        if key in flat:
            name = key.removesuffix(".name").rpartition(".")[2].removesuffix("_size")
            words.append(f"{name} {flat[key]}")
    return " ".join(words)


class SweepStatus:
    """Derives the states of jobs from the rows of a results folder, and reads new rows as they are
    appended.
    """

    def __init__(
        self,
        folder: ResultsFolder,
        launcher: str,
        force: bool = False,
        since: int | None = None,
        quick: bool = False,
    ) -> None:
        """Read the existing rows. With `force`, only rows that this sweep appends count.

        Rows of machines whose times do not compare with this machine's count only for launchers
        that use several machines. `since` is the number of stored rows when the sweep began; None
        means that the sweep begins now. `quick` compares processors alone, which needs no torch.
        """
        self.folder, self.force = folder, force
        self._launcher, self._quick = launcher, quick
        self._records: dict[str, list[tuple[int, Record]]] = {}
        self._inode = -1  # of the file that was read; moving corrupt lines replaces the file
        self._offset = self._count = 0
        self.refresh()
        self.since = self._count if since is None else since

    def refresh(self) -> None:
        """Read the lines that were appended since the last call."""
        try:
            with self.folder.runs_path.open("rb") as stream:
                inode = os.fstat(stream.fileno()).st_ino
                if inode != self._inode:
                    self._inode, self._offset, self._count, self._records = inode, 0, 0, {}
                stream.seek(self._offset)
                new = stream.read()
        except OSError:
            return
        whole = new[: new.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            if record := parse(line):
                self._records.setdefault(record.id, []).append((self._count, record))
                self._count += 1

    def record(self, job: Job) -> Record | None:
        """Return the record that settles a job, or None if the job has to run.

        Finished runs of earlier sweeps settle a job, but failed runs do not. A finished record
        counts only if its generations are stored.
        """
        records = self._records.get(job.id)
        if not records:
            return None
        if self.folder.generations_path(job.id).is_file():
            for index, record in reversed(records):
                is_new = index >= self.since
                if record.is_done and (is_new or self._counts(record)):
                    return record
        index, newest = records[-1]
        counts = index >= self.since or (job.refused and newest.status == NOT_APPLICABLE)
        return newest if counts and not newest.is_done else None

    def describe(self, job: Job) -> tuple[str, str]:
        """Return `done`, `n/a`, `failed` or `to do`, and the reason or the progress; a refused job
        counts as settled.
        """
        settled = self.record(job)
        if settled and settled.is_done:
            return DONE, ""
        if job.refused:
            refused = NOT_APPLICABLE if isinstance(job.refused, NotApplicable) else FAILED
            return refused, failure_reason(job.refused)
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
        if self._launcher in SHARED or record.environment is None:
            return self._launcher in SHARED
        where = record.environment.model_dump()
        if self._quick:
            return environment.is_likely_here(where)
        also = ("threads",) if self._launcher == "inline" else ()
        return environment.is_like_here(where, record.device or "cpu", also)


@dataclass
class SweepOutcome:
    """The records and failures of a grid's points."""

    num_requested: int
    records: dict[str, Record] = field(default_factory=dict)  # by identifier, with baselines
    failures: list[str] = field(default_factory=list)  # one line for every failed point

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
                f"{len(self.failures)} of {self.num_requested} points failed, the first:"
                f" {self.failures[0]}"
            )
