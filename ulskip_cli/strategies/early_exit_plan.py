"""Make the exit rule of a configuration, count the output heads per step, and refuse options that are not supported."""

from collections.abc import Callable

from ulskip_cli.core.config_schema import COMPILED, Config
from ulskip_cli.core.errors import NotApplicable
from ulskip_cli.strategies import EarlyExitStrategy, Strategy
from ulskip_cli.strategies.exit_rule import ExitRule


def heads_per_step(strategy: Strategy, config: Config, num_layers: int) -> Callable[[int], int]:
    """Return a function from the depth of a step to the number of times that it runs the output head."""
    if not isinstance(strategy, EarlyExitStrategy):
        return lambda depth: 1
    return strategy.exit_rule(num_layers, num_layers, config.decoding.max_new_tokens).heads


def make_exit_rule(strategy: Strategy, config: Config, num_layers: int, num_kept: int) -> ExitRule | None:
    """Return the exit rule (None if no step can exit early); raise NotApplicable for options that it cannot use."""
    if not isinstance(strategy, EarlyExitStrategy) or num_kept == num_layers:
        return None
    rule = strategy.exit_rule(num_layers, num_kept, config.decoding.max_new_tokens)
    name, decoding = config.strategy["name"], config.decoding
    if rule.batch == "na" and config.batch_size > 1:
        raise NotApplicable(
            f"expected batch_size=1 with strategy.batch=na, got {config.batch_size}; set batch_size=1 or strategy.batch=min"
        )
    if config.engine.name not in ("auto", "torch"):
        raise NotApplicable(f"engine={config.engine.name} is not supported with strategy={name}; use engine=auto")
    refused = {
        "num_beams=1": decoding.num_beams > 1,
        "stop=[]": bool(decoding.stop),
        "generate_kwargs=null": bool(decoding.generate_kwargs),
        "draft_tokens=0": bool(decoding.draft_tokens),
        "compile=auto": decoding.compile in COMPILED,
    }
    for supported, is_set in refused.items():
        if is_set:
            key = supported.split("=")[0]
            value = str(getattr(decoding, key))[:60]
            raise NotApplicable(f"decoding.{key}={value} is not supported with strategy={name}; use decoding.{supported}")
    return rule
