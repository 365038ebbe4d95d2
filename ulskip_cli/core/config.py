"""Configurations: overrides become a checked `Config`, which has an identity and a baseline."""

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ulskip_cli.core.composition import compose_untyped, refuse_renamed
from ulskip_cli.core.composition import config_dir as config_dir
from ulskip_cli.core.composition import group_choices as group_choices
from ulskip_cli.core.composition import parse_overrides as parse_overrides
from ulskip_cli.core.config_schema import Config, DecodingConfig, TrainingConfig
from ulskip_cli.core.errors import UsageError, require_choice
from ulskip_cli.core.validation import check_decoding, check_run, check_training

GROUPS = ("model", "task", "strategy", "decoding", "launcher", "experiment")
TRAINING_GROUPS = ("model", "task", "strategy", "train")
_NOT_RECORDED = ("launcher", "tracker", "tracker_options")
_NOT_IDENTITY = ("name", "results_dir", "sweep", "memory_budget", *_NOT_RECORDED)  # they change no result
_NOT_OPTIONS = ("_target_", "name", "description")
_BASELINE: dict[str, Any] = {"ratio": 1.0, "ratio_basis": "layers", "prompt_layers": "all", "baseline": True}


def compose(overrides: Sequence[str], extra_dir: Path | None = None) -> Config:
    """Build a run's checked configuration from Hydra overrides and a user's folder of config groups, or raise UsageError."""
    config = compose_unvalidated(overrides, extra_dir)
    check_run(config)
    return config


def compose_unvalidated(overrides: Sequence[str], extra_dir: Path | None = None) -> Config:
    """Build the configuration of a run; check names and types, but neither bounds nor combinations of values."""
    config: Config = _to_schema(compose_untyped("config", GROUPS, overrides, extra_dir), Config)
    return config


def compose_training(overrides: Sequence[str], extra_dir: Path | None = None) -> TrainingConfig:
    """Build the checked configuration of a training; see `compose`."""
    composed = compose_untyped("train", TRAINING_GROUPS, overrides, extra_dir)
    if not OmegaConf.is_list(composed.train.ratios):
        composed.train.ratios = [composed.train.ratios]
    config: TrainingConfig = _to_schema(composed, TrainingConfig)
    check_training(config)
    return config


def decoding_of(values: Mapping[str, Any]) -> DecodingConfig:
    """Build a checked decoding configuration, greedy with some keys of `decoding` changed, or raise UsageError."""
    refuse_renamed(f"decoding.{key}" for key in values)
    known = [one.name for one in fields(DecodingConfig) if one.name not in ("name", "description", "draft_tokens")]
    for key in values:
        require_choice("decoding option", key, known)
    config: DecodingConfig = _to_schema(OmegaConf.create({"name": "custom", **values}), DecodingConfig)
    check_decoding(config)
    return config


def instantiate(node: dict[str, Any], group: str) -> Any:
    """Build the task or strategy that a config names in `_target_`; values that do not fit its fields are a UsageError."""
    from hydra.utils import get_class

    try:
        schema = OmegaConf.structured(get_class(node["_target_"]))
    except Exception as error:
        raise UsageError(f"{group} {node.get('name')!r}: cannot load {node.get('_target_')!r} ({error})") from None
    OmegaConf.set_readonly(schema, False)
    try:
        return OmegaConf.to_object(OmegaConf.merge(schema, options_of(node)))
    except OmegaConfBaseException as error:
        raise _as_usage_error(error, prefix=f"{group}.") from None


def options_of(node: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a task or strategy config, without its class, name and description."""
    return {key: value for key, value in node.items() if key not in _NOT_OPTIONS}


def identity(config: Config) -> str:
    """Hash everything in a configuration that changes its results; 12 hex digits."""
    canonical, strategy = resolved_config(config), instantiate(config.strategy, "strategy")
    if not strategy.follows_ratio:
        canonical.update(ratio=None, ratio_basis=None)
    if hasattr(strategy, "stands_for"):
        kept = {key: canonical["strategy"][key] for key in ("_target_", "name")}
        canonical["strategy"] = {**kept, **strategy.stands_for()}
    if config.strategy["name"] == "full":
        canonical.update(prompt_layers="all")
    for key in _NOT_IDENTITY:
        canonical.pop(key)
    for group in ("model", "task", "strategy", "decoding"):
        canonical[group].pop("description", None)
    if is_calibrated(config.strategy):
        canonical.pop("calibration")
    return hashlib.sha256(json.dumps(canonical, sort_keys=True).encode()).hexdigest()[:12]


def is_calibrated(strategy: dict[str, Any]) -> bool:
    """Tell if a strategy needs no held-out examples: it is never calibrated, or its calibrated options are given."""
    return getattr(instantiate(strategy, "strategy"), "is_calibrated", True)


def baseline_config(config: Config) -> Config:
    """Return the configuration of the baseline: the same experiment with every layer kept and no drafts."""
    full: dict[str, Any] = yaml.safe_load((config_dir() / "strategy" / "full.yaml").read_text("utf-8"))
    return replace(copy.deepcopy(config), strategy=full, decoding=without_drafts(config.decoding), **_BASELINE)


def without_drafts(decoding: DecodingConfig) -> DecodingConfig:
    """Return the decoding that drafting is compared with: it chooses tokens in the same way, one at a time."""
    if not decoding.draft_tokens:
        return decoding
    return replace(decoding, name="sample" if decoding.do_sample else "greedy", draft_tokens=0)


def resolved_config(config: Config | TrainingConfig) -> dict[str, Any]:
    """Return a configuration as plain, JSON-ready values."""
    return asdict(config)


def recorded_config(config: Config | TrainingConfig) -> dict[str, Any]:
    """Return the configuration that a results row or a training keeps: everything but the launcher and the tracker."""
    return {key: value for key, value in resolved_config(config).items() if key not in _NOT_RECORDED}


def to_yaml(config: Config | TrainingConfig) -> str:
    """Return the configuration as YAML, as `--print-config` shows it and results keep it."""
    return OmegaConf.to_yaml(OmegaConf.create(resolved_config(config)))


def _to_schema(composed: DictConfig, schema: type) -> Any:
    try:
        missing = OmegaConf.missing_keys(composed)
        if missing:
            example = "; e.g. model.path=<hub id or folder>" if "model.path" in missing else ""
            raise UsageError(f"expected a value for {', '.join(sorted(missing))}{example}")
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), composed))
    except OmegaConfBaseException as error:
        raise _as_usage_error(error) from None


def _as_usage_error(error: OmegaConfBaseException, prefix: str = "") -> UsageError:
    message = str(error.msg if hasattr(error, "msg") and error.msg else error).split("\n")[0]
    if "is not a ListConfig" in message:
        message = "expected a list, written [a,b]"
    elif "Cannot merge DictConfig with ListConfig" in message or "is not a DictConfig" in message:
        message = "expected keys with values, written {a: 1, b: 2}"
    return UsageError(f"{prefix}{error.full_key}: {message}" if error.full_key else message)
