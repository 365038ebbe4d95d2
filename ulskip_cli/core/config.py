"""Configurations: overrides become one frozen, typed and checked object."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ulskip_cli.core import capabilities
from ulskip_cli.core.capabilities import Need
from ulskip_cli.core.composition import (
    CHOICES,
    choice_class,
    compose_values,
    read_choice,
    refuse_renamed,
)
from ulskip_cli.core.composition import config_dir as config_dir
from ulskip_cli.core.composition import group_choices as group_choices
from ulskip_cli.core.composition import parse_overrides as parse_overrides
from ulskip_cli.core.config_schema import Config, DecodingConfig, Shared, TrainingConfig, TuneConfig
from ulskip_cli.core.engines import Engine, engine_named
from ulskip_cli.core.errors import UsageError, require_choice
from ulskip_cli.core.options import Choice, parse
from ulskip_cli.core.validation import check_decoding, check_run, check_training

GROUPS = ("model", "task", "strategy", "correction", "decoding", "engine", "launcher", "experiment")
TRAINING_GROUPS = ("model", "task", "strategy", "train")
_NOT_OPTIONS = ("_target_", "description")

Composed = TypeVar("Composed", bound=Shared)


def compose(
    overrides: Sequence[str], extra_dir: Path | None = None, command: str = "plan"
) -> Config:
    """Build the configuration of a command from overrides and a user's config folder.

    Raises UsageError for an invalid key or value, and NotApplicable for values that exclude each
    other.
    """
    config = compose_unvalidated(overrides, extra_dir)
    check_run(config, command)
    return config


def compose_unvalidated(overrides: Sequence[str], extra_dir: Path | None = None) -> Config:
    """Build the configuration of a run; check every value, but not whether the values go
    together.
    """
    return _composed("config", Config, GROUPS, overrides, extra_dir)


def compose_training(overrides: Sequence[str], extra_dir: Path | None = None) -> TrainingConfig:
    """Build the checked configuration of a training run; see `compose`."""
    config = _composed("train", TrainingConfig, TRAINING_GROUPS, overrides, extra_dir)
    check_training(config)
    return config


def compose_tuning(overrides: Sequence[str], extra_dir: Path | None = None) -> TuneConfig:
    """Build the checked configuration of `ulskip tune`; see `compose`."""
    config = _composed("tune", TuneConfig, GROUPS, overrides, extra_dir)
    capabilities.check(
        config.needs() - {Need.PATCHES, Need.FOLDED_PATCHES}, "tune"
    )  # candidates have their own
    return config


def decoding_of(values: Mapping[str, Any]) -> DecodingConfig:
    """Build a greedy decoding configuration with the keys in `values` changed; raise UsageError for
    an invalid key or value.
    """
    refuse_renamed(f"decoding.{key}" for key in values)
    other = ("name", "draft_tokens", "draft", "draft_vocab")
    for key in values:
        require_choice(
            "decoding option",
            key,
            [name for name in DecodingConfig.model_fields if name not in other],
        )
    config = parse(DecodingConfig, values, "decoding.")
    check_decoding(config)
    return config


def preset(
    group: str, name: str, options: Mapping[str, Any] | None = None, extra_dir: Path | None = None
) -> Any:
    """Return a choice of a group as an object, with some options changed; raise UsageError for an
    unknown one.
    """
    require_choice(group, name, group_choices(group, extra_dir))
    chosen = read_choice(group, name, extra_dir)
    return make_choice({**chosen, **(options or {}), "_target_": chosen["_target_"]}, group)


def stored_choice(group: str, values: Mapping[str, Any]) -> Any:
    """Return the choice that a row stores by its name and the options that differ from the defaults
    of its class.

    The class comes from the preset and not from the row.
    """
    name = str(values.get("name"))
    require_choice(group, name, group_choices(group))
    options = {key: value for key, value in values.items() if key not in _NOT_OPTIONS}
    return parse(choice_class(read_choice(group, name), group), options, f"{group}.")


def make_choice(node: Mapping[str, Any], group: str, prefix: str | None = None) -> Choice:
    """Return the object that the values of a group describe; `prefix` stands before the key in
    messages.
    """
    values = {key: value for key, value in node.items() if key not in _NOT_OPTIONS}
    return parse(choice_class(node, group), values, f"{group}." if prefix is None else prefix)


def changed_choice(choice: Any, changes: Mapping[str, Any], prefix: str) -> Any:
    """Return a choice with some options changed and checked; raise UsageError for a value that does
    not fit.
    """
    return parse(type(choice), {**dict(choice), **changes}, prefix)


def baseline_config(config: Config) -> Config:
    """Return the configuration of the baseline: the same experiment with every layer of its model
    kept and no drafts.
    """
    return config.replace(
        strategy=preset("strategy", "full"),
        correction=preset("correction", "none"),
        model=config.baseline_model or config.model,
        engine=baseline_engine(config),
        decoding=config.decoding.without_drafts(),
        ratio=1.0,
        ratio_basis="layers",
        prompt_layers="all",
        baseline=True,
        baseline_engine=None,
        baseline_model=None,
    )


def baseline_engine(config: Config) -> Engine:
    """Return the engine of the baseline."""
    return engine_named(config.baseline_engine) if config.baseline_engine else config.engine


def to_yaml(config: Shared) -> str:
    """Return the configuration as YAML, in the form that results folders store."""
    return yaml.safe_dump(config.resolved(), sort_keys=False, allow_unicode=True)


def _composed(
    primary: str,
    kind: type[Composed],
    groups: Sequence[str],
    overrides: Sequence[str],
    extra_dir: Path | None,
) -> Composed:
    composed = compose_values(primary, kind, groups, overrides, extra_dir)
    try:
        OmegaConf.resolve(composed)
    except OmegaConfBaseException as error:
        raise UsageError(
            f"{str(error).splitlines()[0]}; ${{...}} must contain the name of an existing key"
        ) from None
    if missing := OmegaConf.missing_keys(composed):
        example = "; e.g. model.path=<hub id or folder>" if "model.path" in missing else ""
        raise UsageError(f"expected a value for {', '.join(sorted(missing))}{example}")
    values: dict[str, Any] = OmegaConf.to_container(composed)  # type: ignore[assignment]
    for group in CHOICES.keys() & set(groups) & values.keys():
        values[group] = make_choice(values[group], group)
    for group in values.keys() & set(groups) - CHOICES.keys():
        values[group].pop("description", None)
    return parse(kind, values)
