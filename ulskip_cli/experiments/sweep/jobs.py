"""Turn the points of a sweep into jobs: resolve, label and order them, baselines first. Imports no
torch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ulskip_cli.core.config_schema import Config
from ulskip_cli.core.errors import NotApplicable, RunError, UsageError
from ulskip_cli.experiments.preflight import ResolvedPoint, Resolver
from ulskip_cli.experiments.record import FAILED, NOT_APPLICABLE, Point, Record
from ulskip_cli.experiments.results import ResultsFolder

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
        """The identifier of the baseline job that must finish before this job; None if the job has
        no baseline.
        """
        return self.point.baseline.run_id if self.point and self.point.baseline else None

    @property
    def identity(self) -> Point:
        """The settings that identify the job, equal for a finished and a failed run."""
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
    models = list(dict.fromkeys(str(config.model) for config in configs))
    jobs: dict[str, Job] = {}
    for config in sorted(configs, key=lambda config: models.index(str(config.model))):
        job = _resolve(config, _label(config, varying), resolver)
        full = job.point.baseline if job.point else None
        if full and full.run_id not in jobs:
            jobs[full.run_id] = Job(
                full.config, full.run_id, _label(full.config, varying), full, requested=False
            )
        jobs[job.id] = replace(jobs.get(job.id, job), requested=True)
    requested = [job for job in jobs.values() if job.requested]
    refused = [job.refused for job in requested if job.refused]
    if len(refused) == len(requested):
        raise refused[0]
    return list(jobs.values())


def _resolve(config: Config, label: str, resolver: Resolver) -> Job:
    try:
        point = resolver.resolve(config)
        return Job(config, point.run_id, label, point)
    except UsageError as error:
        return Job(config, resolver.fallback_id(config), label, refused=error)


def _varying(points: Sequence[Config]) -> list[str]:
    """Return the keys that vary. A key of a config group varies only if points with the same choice
    in the group differ.
    """
    values: dict[str, dict[str, set[str]]] = {}  # values by key and by choice in its group
    for point in points:
        flat = dict(_flat(point.plain()))
        for key, value in flat.items():
            choice = "" if key.endswith(".name") else str(flat.get(f"{key.partition('.')[0]}.name"))
            values.setdefault(key, {}).setdefault(choice, set()).add(str(value))
    varying = [key for key, by_choice in values.items() if max(map(len, by_choice.values())) > 1]
    return [key for key in varying if key not in ("ratio", "strategy.name")]


def _flat(node: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if key in _UNLABELLED and not (key == "name" and prefix):
            continue
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _label(config: Config, varying: Sequence[str]) -> str:
    flat = dict(_flat(config.plain()))
    ratio = [f"ratio {config.ratio:g}"] if config.strategy.follows_ratio else []
    names = {
        key: key.removesuffix(".name").rpartition(".")[2].removesuffix("_size") for key in varying
    }
    return " ".join(
        [
            config.strategy.name,
            *ratio,
            *(f"{name} {flat[key]}" for key, name in names.items() if key in flat),
        ]
    )


def results_folder(jobs: Sequence[Job]) -> ResultsFolder:
    """Return the results folder that all jobs of a sweep share."""
    return ResultsFolder.of(jobs[0].config)
