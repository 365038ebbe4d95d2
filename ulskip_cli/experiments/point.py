"""`Point`: one point of an experiment with everything that follows from its configuration.

It is made without torch. Invalid requests are refused here: ratios, strategies, metrics, task
files, model files, generation options.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ulskip_cli.core.config import CHOICES, baseline_config, changed_choice
from ulskip_cli.core.config_schema import Config
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.fingerprint import digest
from ulskip_cli.core.model_metadata import ModelFolder
from ulskip_cli.core.task import Example, Task, check_references
from ulskip_cli.strategies.plan import Plan, make_plan
from ulskip_cli.tasks import metrics

if TYPE_CHECKING:
    from ulskip_cli.experiments.record import Settings

# Raised when a calibration or a fit would come out differently, so that stored ones and their rows
# do not count.
CALIBRATION = 2


@dataclass(frozen=True)
class TaskExamples:
    """Examples to evaluate or to calibrate with, and the task that makes their prompts."""

    task: Task
    examples: Sequence[Example]


@dataclass(frozen=True)
class Point:
    """One point of an experiment with everything that follows from its configuration."""

    config: Config  # as asked; it never changes
    folder: ModelFolder  # a run fails if its fingerprint changed meanwhile
    plan: Plan  # before calibration
    data: TaskExamples | None  # to evaluate; None for a benchmark, which times random prompts
    held_out: TaskExamples | None  # for calibration; None if nothing is calibrated
    settings: "Settings"  # what its row stores also if the run fails, with the id
    baseline: "Point | None" = None  # None for a full model and for baseline=false

    @property
    def id(self) -> str:
        """A hash of the configuration, the layers, the data, the weights and users' code."""
        return self.settings.id


@dataclass
class Resolver:
    """Makes points; data and model files are read once and reused for later points."""

    # by the hash of task, offset and limit; an error is raised again for each point with these data
    _data: dict[str, TaskExamples | UsageError] = field(default_factory=dict)
    _folders: dict[str, ModelFolder] = field(default_factory=dict)

    def resolve(
        self, config: Config, command: str = "run", data: TaskExamples | None = None
    ) -> Point:
        """Check a configuration of `run`, `generate` or `bench`, which reads no task, and make its
        point; raise a UsageError (or NotApplicable) that names the unsupported key. `data` replaces
        the examples of the task.
        """
        folder, plan = self.schedule(config, command)
        folder.check_installed()
        if command == "bench":
            _check_benchmark(config, plan.timed_tokens, folder.metadata.context)
            return self._point(config, command, folder, plan)
        data = data or self.data(config)
        if not config.answers:
            check_references(data.examples, "answers=false")
        held_out = baseline = None
        if config.needs_held_out:
            held_out = find_held_out(config, data.examples)
        has_baseline = command == "run" and config.baseline
        if has_baseline and (not plan.is_full_model or config.crosses_engines):
            baseline = self.resolve(baseline_config(config))
        return self._point(config, command, folder, plan, data, held_out, baseline)

    def schedule(self, config: Config, command: str) -> tuple[ModelFolder, Plan]:
        """Return the model's files and the plan of a command, without reading the task's data."""
        folder = self._folders.setdefault(digest(config.model), ModelFolder(config.model))
        config.engine.check_model(folder.config)
        plan = make_plan(config, folder.metadata, command)
        if config.strategy.is_calibrated:  # its layers are known
            config.correction.folder_for(config.model, plan.sets_with_gaps)
        return folder, plan

    def data(self, config: Config) -> TaskExamples:
        """Return the task and the examples of a run; raise UsageError if they cannot be read or
        scored.
        """
        name = digest(config.task, config.offset, config.limit)
        if name not in self._data:
            try:
                self._data[name] = _checked_examples(config)
            except UsageError as error:  # of all points with these data
                self._data[name] = error
        data = self._data[name]
        if isinstance(data, UsageError):
            raise data
        return data

    def _point(
        self,
        config: Config,
        command: str,
        folder: ModelFolder,
        plan: Plan,
        data: TaskExamples | None = None,
        held_out: TaskExamples | None = None,
        baseline: Point | None = None,
    ) -> Point:
        """Return a point with the settings that its row stores."""
        from ulskip_cli.experiments.record import (
            Settings,  # takes 40 ms, which a plan does not need
        )

        # A row has the type of the checkpoint in place of dtype=auto.
        recorded = config.replace(model=folder.model)
        version = CALIBRATION if held_out else None
        texts = [part and part.examples for part in (data, held_out)]
        settings = Settings.of(
            recorded,
            point_key(recorded, command, folder, plan, texts, version),
            "bench" if command == "bench" else "run",
            baseline_id=baseline and baseline.id,
            dataset=data and data.task.data,
        )
        return Point(config, folder, plan, data, held_out, settings, baseline)


def resolve(config: Config) -> Point:
    """Resolve a single run; see `Resolver.resolve`."""
    return Resolver().resolve(config)


def point_key(
    config: Config, command: str, folder: ModelFolder, plan: Plan, *others: object
) -> str:
    """Return a hash of everything that decides the results of a point.

    The layers of a plan stand for the code of their strategy, unless a calibration decides them.
    """
    choices = {name: getattr(config, name) for name in CHOICES if config.uses(name, command)}
    if config.strategy.is_calibrated:
        choices.pop("strategy", None)
    return digest(
        config.identity(command),
        folder.fingerprint,
        config.correction.fingerprint(),
        plan.stages,
        plan.exits,
        {name: choice.code_fingerprint for name, choice in choices.items()},
        *others,
    )


def resolve_prompts(config: Config, prompt: str | None = None) -> Point:
    """Resolve the answers to a prompt, or to the prompts of a task, by the full model and by the
    kept layers; no row stores them.
    """
    config = config.replace(batch_size=1)  # one prompt is answered after the other
    if prompt is None:
        # Not by `Resolver.data`, which checks the metrics: these answers are not scored.
        data = TaskExamples(config.task, evaluated_examples(config))
        return Resolver().resolve(config, "generate", data)
    if not prompt.strip():
        raise UsageError("expected a prompt, got an empty text")
    if config.needs_held_out and not config.calibration.task and not config.task.held_out():
        instead = (
            "use correction=adapter correction.path=FOLDER"
            if config.correction.is_fitted
            else "set its options, strategy.KEY=VALUE, from the calibration of a run's row"
        )
        raise UsageError(
            f"{_calibrated(config)} is calibrated on held-out examples, and a prompt has none; set"
            f" calibration.task='{{file: FILE}}', or {instead}"
        )
    data = TaskExamples(config.task, [Example("prompt", prompt, "")])
    return Resolver().resolve(config, "generate", data)


def _checked_examples(config: Config) -> TaskExamples:
    """Return the task and the examples of a run; raise UsageError if a metric cannot score them or
    a template does not fit.
    """
    scoring = config.task.scoring()
    metrics.make_metrics(scoring)  # a missing package is reported before a missing file
    examples = evaluated_examples(config)
    references = [example.reference for example in examples if example.reference]
    metrics.make_metrics(scoring, references)
    # Which template the model uses is not known yet; that of chats has the same fields.
    template = config.task.template_for(has_chat=True)
    template.prompt(examples[0])
    template.response(examples[0])
    return TaskExamples(config.task, examples)


def evaluated_examples(config: Config) -> list[Example]:
    """Return the examples that a run evaluates: `limit` examples after the first `offset`; raise
    UsageError if none is left.
    """
    examples = config.task.examples()
    if config.offset >= len(examples):
        raise UsageError(
            f"expected offset below the number of examples, {len(examples)}, got {config.offset}"
        )
    return examples[config.offset :][: config.limit]


def find_held_out(config: Config, evaluated: Sequence[Example]) -> TaskExamples:
    """Return the calibration examples; raise UsageError if there are none.

    The first available source is used: the examples of `calibration.task` that are not evaluated,
    the task's held-out examples, or the examples after the evaluated ones.
    """
    calibration, task = config.calibration, config.task
    if calibration.task:
        task = changed_choice(task, calibration.task, "calibration.task.")
        texts = {example.texts for example in evaluated}
        examples = [example for example in task.examples() if example.texts not in texts]
    elif held_out := task.held_out():
        task, examples = held_out, held_out.examples()
    else:
        examples = task.examples()[config.offset + config.limit :] if config.limit else []
    chosen = examples[: calibration.examples]
    if not chosen:
        raise UsageError(
            f"expected held-out examples to calibrate {_calibrated(config)}, got none;"
            f" set limit=N below {len(config.task.examples())} to calibrate on the examples after"
            " the first N, or name other data that are not evaluated, calibration.task={KEY: FILE}"
        )
    # A calibration that depends on the decoding measures generated answers.
    strategy = config.strategy
    if not strategy.is_calibrated and "decoding" not in strategy.calibrated_for:
        check_references(chosen, f"the calibration of strategy={strategy.name}")
    return TaskExamples(task, chosen)


def _calibrated(config: Config) -> str:
    """Return the choice that held-out examples calibrate, e.g. `correction=patch`."""
    key = "correction" if config.correction.is_fitted else "strategy"
    return f"{key}={getattr(config, key).name}"


def _check_benchmark(config: Config, timed_tokens: int, context: int | None) -> None:
    """Raise UsageError if random prompts and their answers exceed the model's context."""
    prompt_tokens = config.speed.prompt_tokens
    if context is not None and prompt_tokens + timed_tokens > context:
        raise UsageError(
            "expected speed.prompt_tokens and the timed tokens within the model's context of"
            f" {context}, got {prompt_tokens} + {timed_tokens}; lower speed.prompt_tokens,"
            " speed.new_tokens or strategy.horizon"
        )
