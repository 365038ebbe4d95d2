"""Alternatives to skipping layers, compared with the same full model: drafts of the kept layers,
and smaller models.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from ulskip_cli.core.config import baseline_config, compose_unvalidated, group_choices
from ulskip_cli.core.config_schema import AUTO, AlternativesConfig, Config, ModelConfig
from ulskip_cli.core.errors import NotApplicable, UsageError
from ulskip_cli.core.model_metadata import read_metadata
from ulskip_cli.core.validation import check_run

_PLACEMENT = (
    "model.dtype",
    "model.device",
    "model.device_map",
)  # keys of the grid's model that hold for others too


def alternative_points(
    config: Config, asked: AlternativesConfig, overrides: Sequence[str], extra_dir: Path | None
) -> list[Config]:
    """Return the alternatives to a point that its engine supports; `overrides` are those of the
    point.

    Raises UsageError for a model that does not exist or has no tokenizer.
    """
    points = (
        []
        if config.strategy.keeps_all
        else [_drafting(config, number) for number in asked.draft_tokens]
    )
    if config.baseline:
        placement = tuple(text for text in overrides if text.partition("=")[0] in _PLACEMENT)
        models = [_model(name, placement, extra_dir) for name in asked.models]
        points += [_smaller(config, model) for model in models if model != config.model]
    return [point for point in points if _is_applicable(point)]


def _drafting(config: Config, draft_tokens: int | str) -> Config:
    decoding = config.decoding.replace(
        name="self_speculative", draft_tokens=draft_tokens, draft_vocab=AUTO
    )
    return config.replace(decoding=decoding)


def _smaller(config: Config, model: ModelConfig) -> Config:
    """Return a point with every layer of another model, whose baseline is the full model of
    `config`.
    """
    full = baseline_config(config)
    smaller = full.replace(model=model, engine=config.engine)
    return smaller.replace(baseline_engine=config.baseline_engine, baseline_model=full.model)


@cache
def _model(name: str, placement: tuple[str, ...], extra_dir: Path | None) -> ModelConfig:
    """Return the configuration of a preset, folder or hub id; raise UsageError if its files or its
    tokenizer are missing.
    """
    from ulskip_cli.inference.loading import load_tokenizer

    is_preset = name in group_choices("model", extra_dir)
    choice = [f"model={name}"] if is_preset else ["model=hf", "model.path=FOLDER"]
    model = compose_unvalidated([*choice, *placement], extra_dir).model
    model = model if is_preset else model.replace(path=name)
    try:
        read_metadata(model)
        if load_tokenizer(model) is None:
            raise UsageError(
                f"expected models with a tokenizer, got {name}; use pretrained weights"
            )
    except UsageError as error:
        raise UsageError(f"alternatives.models: {error}") from None
    return model


def _is_applicable(config: Config) -> bool:
    try:
        check_run(config, "sweep")
    except NotApplicable:
        return False
    return True
