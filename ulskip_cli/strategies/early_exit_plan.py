"""Early exit in plans: the exit rule of a configuration, its output heads per step, and what it does not go with."""

from collections.abc import Callable

from ulskip_cli.core.config_schema import Config
from ulskip_cli.core.errors import NotApplicable
from ulskip_cli.strategies import EarlyExitStrategy, Strategy
from ulskip_cli.strategies.exit_rule import ExitRule


def heads_per_step(strategy: Strategy, config: Config, num_layers: int) -> Callable[[int], int]:
    """Return a function from the depth of a step to the number of times that it runs the output head."""
    if not isinstance(strategy, EarlyExitStrategy):
        return lambda depth: 1
    return strategy.exit_rule(num_layers, num_layers, config.decoding.max_new_tokens).heads


def make_exit_rule(strategy: Strategy, config: Config, num_layers: int, num_kept: int) -> ExitRule | None:
    """Return the exit rule of a configuration, or raise NotApplicable; None if its steps always run all kept layers."""
    if not isinstance(strategy, EarlyExitStrategy) or num_kept == num_layers:
        return None
    rule = strategy.exit_rule(num_layers, num_kept, config.decoding.max_new_tokens)
    name, decoding = config.strategy["name"], config.decoding
    if rule.batch == "na" and config.batch_size > 1:
        raise NotApplicable(
            f"strategy={name} with strategy.batch=na serves batch_size=1 alone, got {config.batch_size}; "
            "with strategy.batch=min a batch exits when its least confident sequence may"
        )
    refused = {
        "beams; set decoding.num_beams=1": decoding.num_beams > 1,
        "stop strings; set decoding.stop=[]": bool(decoding.stop),
        "arguments of transformers' generate; set decoding.generate_kwargs=null": bool(decoding.generate_kwargs),
        "drafts; set decoding.draft_tokens=0": bool(decoding.draft_tokens),
        "transformers' generate; set decoding.engine=auto": decoding.engine == "transformers",
        "compiled steps; set decoding.compile=auto": decoding.compile == "on",
    }
    for reason, is_set in refused.items():
        if is_set:
            raise NotApplicable(f"strategy={name} does not go with {reason}")
    return rule
