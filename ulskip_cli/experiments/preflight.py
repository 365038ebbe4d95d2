"""What is refused before torch is imported: ratios, strategies, metrics, task files, model files."""

from collections.abc import Sequence

from ulskip_cli.core import validation
from ulskip_cli.core.config import instantiate
from ulskip_cli.core.config_schema import Config
from ulskip_cli.core.errors import NotApplicable, UsageError
from ulskip_cli.core.model_metadata import ModelMetadata, read_metadata
from ulskip_cli.experiments.held_out import held_out_task
from ulskip_cli.strategies.plan import Plan, make_plan
from ulskip_cli.tasks import metrics
from ulskip_cli.tasks.example import Example


def check_run(config: Config) -> None:
    """Refuse a run that cannot work.

    Raises:
        UsageError: names what cannot.
    """
    _, plan = check_schedule(config)
    check_data(config)
    check_held_out(config, plan)
    check_options(config)


def check_data(config: Config) -> Sequence[Example]:
    """The examples of a run, which are there and can be scored.

    Raises:
        UsageError: names what is missing.
    """
    task = instantiate(config.task, "task")
    metrics.made(task.scoring())  # a missing package is told before a missing file
    examples: Sequence[Example] = task.examples()[: config.limit]
    metrics.made(task.scoring(), [example.reference for example in examples])
    return examples


def check_held_out(config: Config, plan: Plan) -> None:
    """The examples that a strategy is calibrated on are there.

    Raises:
        UsageError: names what is missing.
    """
    if config.model.source != "random":
        held_out_task(config)
    elif plan.exits and plan.exits.threshold is None:
        raise UsageError(
            f"strategy={plan.strategy} finds its threshold on texts, which random weights cannot read; give strategy.threshold"
        )


def check_bench(config: Config) -> None:
    """Refuse a bench that cannot work; its task is not looked at.

    Raises:
        UsageError: names what cannot.
    """
    facts, plan = check_schedule(config)
    speed, context = config.speed, facts.context
    if plan.exits:
        raise NotApplicable(
            f"strategy={plan.strategy} leaves where it is sure, which random prompts do not show; time it with `ulskip run`"
        )
    if not speed.enabled:
        raise UsageError("speed.enabled=false is for `ulskip run`; a bench measures nothing else")
    if not config.baseline:
        raise UsageError("baseline=false is for `ulskip run`; a bench compares with the full model")
    if context is not None and speed.prompt_tokens + speed.new_tokens > context:
        raise UsageError(
            f"expected speed.prompt_tokens + speed.new_tokens within the model's context of {context}, "
            f"got {speed.prompt_tokens} + {speed.new_tokens}"
        )
    check_options(config)


def check_schedule(config: Config) -> tuple[ModelMetadata, Plan]:
    """What a run would do to a model, as far as is known before its weights are loaded.

    Raises:
        UsageError: that cannot be done.
        NotApplicable: the strategy, or the model, does not serve it.
    """
    validation.check_run(config)
    if config.memory is not None:
        raise UsageError("memory= is for `ulskip plan`; a run takes batch_size=")
    facts = read_metadata(config.model)
    return facts, make_plan(config, facts)


def check_options(config: Config) -> None:
    """Refuse options of transformers' generate that it does not know.

    Raises:
        UsageError: names the option.
    """
    if config.decoding.options:
        from ulskip_cli.inference import generate_options

        generate_options.check(config.decoding)
