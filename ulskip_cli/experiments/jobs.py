"""The jobs of a sweep: its points with labels, in running order. Imports no torch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from ulskip_cli.core.config import baseline_config
from ulskip_cli.core.config_schema import Config
from ulskip_cli.core.errors import NotApplicable, RunError, UsageError
from ulskip_cli.experiments.point import Point, Resolver
from ulskip_cli.experiments.record import FAILED, NOT_APPLICABLE, Outcome, Record, Settings
from ulskip_cli.experiments.settings import point_labels


@dataclass(frozen=True)
class Job:
    """One job of a sweep: a point, or a full baseline that points compare with."""

    config: Config
    settings: Settings  # what its row stores also if the run fails
    point: Point | None = None  # None if the point is refused
    refused: UsageError | None = None  # the reason why the point cannot run
    requested: bool = True  # False for a baseline that only other points need
    label: str = ""  # distinguishes the point within the sweep

    @property
    def id(self) -> str:
        """The identifier of its row; that of the configuration if the point is refused."""
        return self.settings.id

    @property
    def baseline(self) -> str | None:
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
    refused = [job.refused for job in jobs.values() if job.requested]
    if refused[0] and all(refused):
        raise refused[0]
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
        yield Job(config, settings, refused=error)
        return
    if full := point.baseline:
        yield Job(full.config, full.settings, full, requested=False)
    yield Job(config, point.settings, point)
    if command == "bench" and not config.baseline_engine:
        full_config = baseline_config(config).replace(baseline_engine=first_engine)
        if full_config.crosses_engines:
            yield from _jobs_of(full_config, resolver, command, first_engine)
