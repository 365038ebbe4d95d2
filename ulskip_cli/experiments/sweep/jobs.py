"""A sweep's points as jobs: named, checked, each after the full baseline that it is compared with. Imports no torch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ulskip_cli.core.config import baseline_config, identity, instantiate, resolved_config
from ulskip_cli.core.config_schema import Config
from ulskip_cli.core.errors import NotApplicable, UsageError
from ulskip_cli.experiments import preflight
from ulskip_cli.experiments.record import asked_row
from ulskip_cli.experiments.results import FAILED, NOT_APPLICABLE, ResultsFolder, Row, data_text, point_of
from ulskip_cli.tasks.example import Example

_UNSAID = ("description", "_target_", "sweep", "launcher", "name", "results_dir")


@dataclass(frozen=True)
class Job:
    """One point, or a baseline that points need.

    Attributes:
        config: resolved.
        id: of its row; its identity where data or weights cannot be read.
        label: what tells it from the others, for people.
        baseline: the job whose row must be there before; None: none.
        refused: why it cannot be run, known without running it.
        asked: a point of the grid, and not a baseline alone.
    """

    config: Config
    id: str
    label: str
    baseline: str | None = None
    refused: UsageError | None = None
    asked: bool = True

    def failure_row(self, error: BaseException, reason: str) -> Row:
        """The row of a point that has no result."""
        return {
            **asked_row(self.config),
            "status": NOT_APPLICABLE if isinstance(error, NotApplicable) else FAILED,
            "reason": reason,
            "id": self.id,
            "baseline_id": self.baseline,
            "layer_ratio": None,
            "kept_layers": None,
            "warnings": [],
        }


def jobs_of(points: Sequence[Config]) -> list[Job]:
    """Jobs in the order that they are run in: model after model, so that weights are loaded once, a baseline before its points.

    Raises:
        UsageError: every point is refused; the first one's reason.
    """
    read, said = _Reader(), _varying(points)
    models = list(dict.fromkeys(str(point.model) for point in points))
    jobs: dict[str, Job] = {}
    for point in sorted(points, key=lambda point: models.index(str(point.model))):
        job = read.job(point, _label(point, said))
        if job.baseline and job.baseline not in jobs:
            full = baseline_config(point)
            jobs[job.baseline] = replace(read.job(full, _label(full, said)), asked=False)
        jobs[job.id] = replace(jobs.get(job.id, job), asked=True)
    asked = [job for job in jobs.values() if job.asked]
    refused = [job.refused for job in asked if job.refused]
    if len(refused) == len(asked):
        raise refused[0]
    return list(jobs.values())


class _Reader:
    """Names and checks points; data is read once for all that share it."""

    def __init__(self) -> None:
        self._data: dict[str, tuple[Sequence[Example], str] | UsageError] = {}

    def job(self, config: Config, label: str) -> Job:
        data = self._data_of(config)
        try:
            if isinstance(data, UsageError):
                raise data
            point = point_of(config, data[1])
        except UsageError as error:
            return Job(config, identity(config), label, refused=error)
        try:
            _, plan = preflight.check_schedule(config)
            preflight.check_held_out(config, plan)
            preflight.check_options(config)
        except UsageError as error:
            return Job(config, point, label, refused=error)
        alone = plan.keeps_all or not config.baseline
        return Job(config, point, label, None if alone else point_of(baseline_config(config), data[1]))

    def _data_of(self, config: Config) -> tuple[Sequence[Example], str] | UsageError:
        key = f"{config.task} {config.limit}"
        if key not in self._data:
            try:
                examples = preflight.check_data(config)
                self._data[key] = examples, data_text(examples)
            except UsageError as error:
                self._data[key] = error
        return self._data[key]


def _varying(points: Sequence[Config]) -> list[str]:
    """Keys in which points differ that have the same choice in the key's group, and groups of which they have several."""
    values: dict[str, dict[str, set[str]]] = {}  # of every key, by that choice
    for point in points:
        flat = dict(_flat(resolved_config(point)))
        for key, value in flat.items():
            choice = "" if key.endswith(".name") else str(flat.get(f"{key.partition('.')[0]}.name"))
            values.setdefault(key, {}).setdefault(choice, set()).add(str(value))
    varying = [key for key, by_choice in values.items() if max(map(len, by_choice.values())) > 1]
    return [key for key in varying if key not in ("ratio", "strategy.name")]


def _flat(node: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if key in _UNSAID and not (key == "name" and prefix):
            continue
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _label(config: Config, said: Sequence[str]) -> str:
    """Strategy, ratio and what else varies."""
    flat = dict(_flat(resolved_config(config)))
    ratio = [f"ratio {config.ratio:g}"] if instantiate(config.strategy, "strategy").follows_ratio else []
    names = {key: key.removesuffix(".name").rpartition(".")[2].removesuffix("_size") for key in said}
    return " ".join([config.strategy["name"], *ratio, *(f"{name} {flat[key]}" for key, name in names.items() if key in flat)])


def folder_of(jobs: Sequence[Job]) -> ResultsFolder:
    """The one folder of a sweep."""
    return ResultsFolder.of(jobs[0].config)
