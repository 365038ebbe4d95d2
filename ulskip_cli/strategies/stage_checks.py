"""Check that drafting and the engine support the layers of all stages of decoding."""

from collections.abc import Sequence

from ulskip_cli.core.config_schema import Config
from ulskip_cli.core.engines import ENGINES
from ulskip_cli.core.errors import NotApplicable
from ulskip_cli.strategies.schedule import Stage


def check_stages(config: Config, num_layers: int, stages: Sequence[Stage]) -> None:
    """Raise NotApplicable if drafting or the engine does not support the stages of a model of `num_layers` layers."""
    _check_drafts(config, num_layers, stages)
    _check_engine(config, num_layers, stages)


def _check_drafts(config: Config, num_layers: int, stages: Sequence[Stage]) -> None:
    if not config.decoding.draft_tokens:
        return
    if len(stages[0].kept_layers) == num_layers:
        raise NotApplicable(
            "decoding.draft_tokens requires skipped layers, but this schedule keeps every layer; use a higher ratio or another "
            "strategy, or set decoding.draft_tokens=0"
        )
    if len(stages) > 1:
        raise NotApplicable(
            f"decoding.draft_tokens is not supported with strategy={config.strategy['name']}, which changes its layers between "
            "steps; use another strategy, or set decoding.draft_tokens=0"
        )


def _check_engine(config: Config, num_layers: int, stages: Sequence[Stage]) -> None:
    """Raise NotApplicable if an engine that has one set of layers for prompts and all steps is asked for more."""
    name = config.engine.name
    if not ENGINES[name].has_one_depth:
        return
    if len(stages) > 1:
        raise NotApplicable(
            f"engine={name} decodes all tokens through the same layers, strategy={config.strategy['name']} does not; use "
            "another strategy, or engine=auto"
        )
    if config.prompt_layers == "all" and len(stages[0].kept_layers) < num_layers:
        raise NotApplicable(
            f"engine={name} runs prompts through the layers that decode, not through all layers; use prompt_layers=kept, or "
            "engine=auto"
        )
