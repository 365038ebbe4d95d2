"""Early exit in plans and trainings: where steps may end, and what it does not go with. Imports no torch."""

from collections.abc import Callable

from ulskip_cli.core.config import instantiate
from ulskip_cli.core.config_schema import Config, TrainingConfig
from ulskip_cli.core.errors import NotApplicable, UsageError
from ulskip_cli.strategies import EarlyExitStrategy, Strategy
from ulskip_cli.strategies.exit_rule import ExitRule


def heads_per_step(strategy: Strategy, config: Config, num_layers: int) -> Callable[[int], int]:
    """How often a step of so many layers runs the head."""
    if not isinstance(strategy, EarlyExitStrategy):
        return lambda count: 1
    return strategy.exit_rule(num_layers, num_layers, config.decoding.max_new_tokens).heads


def make_exit_rule(strategy: Strategy, config: Config, num_layers: int, count: int) -> ExitRule | None:
    """Where steps may end; None where they run what is kept.

    Raises:
        NotApplicable: early exit does not serve the batch size or the decoding.
    """
    if not isinstance(strategy, EarlyExitStrategy) or count == num_layers:
        return None
    name, decoding = config.strategy["name"], config.decoding
    found = strategy.exit_rule(num_layers, count, decoding.max_new_tokens)
    if found.batch == "na" and config.batch_size > 1:
        raise NotApplicable(
            f"strategy={name} with strategy.batch=na serves batch_size=1 alone, got {config.batch_size}; "
            "strategy.batch=min lets a batch leave when its least confident sequence may"
        )
    refused = {
        "beams; set decoding.num_beams=1": decoding.num_beams > 1,
        "stop strings; set decoding.stop=[]": bool(decoding.stop),
        "options of transformers' generate; set decoding.generate_kwargs=null": bool(decoding.generate_kwargs),
        "drafts; set decoding.draft_tokens=0": bool(decoding.draft_tokens),
        "transformers' generate; set decoding.engine=auto": decoding.engine == "transformers",
        "compiled steps; set decoding.compile=auto": decoding.compile == "on",
    }
    for what, asked in refused.items():
        if asked:
            raise NotApplicable(f"strategy={name} does not go with {what}")
    return found


def check_training(config: TrainingConfig, num_layers: int) -> None:
    """Refuse parts of the loss that early exit has no use for, and exits that the model does not have.

    Raises:
        UsageError: names the option.
    """
    trained_exits(config, num_layers)
    name = config.strategy["name"]
    for key in ("full_weight", "distill_weight"):
        if getattr(config.train, key):
            raise UsageError(f"train.{key} is for schedules; strategy={name} learns at every exit, set it to 0")
    if config.prompt_layers != "all":
        raise UsageError(f"strategy={name} learns to leave at any layer, prompts run through all; set prompt_layers=all")


def trained_exits(config: TrainingConfig, num_layers: int) -> tuple[int, ...]:
    """The depths that a training for early exit learns to leave at, the full model's last; none for other strategies.

    Raises:
        UsageError: there is none before the last.
    """
    strategy: Strategy = instantiate(config.strategy, "strategy")
    if not isinstance(strategy, EarlyExitStrategy):
        return ()
    checks = strategy.exit_rule(num_layers, num_layers, 1).checks
    if not checks:
        raise UsageError(f"expected an exit before the last of {num_layers} layers to train; lower strategy.min_exit")
    return (*checks, num_layers)
