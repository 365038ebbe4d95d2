"""Configurations: overrides become a checked `Config`, which has an identity and a baseline."""

import copy
import hashlib
import json
import pkgutil
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ulskip_cli.core.composition import compose_untyped, refuse_renamed
from ulskip_cli.core.composition import config_dir as config_dir
from ulskip_cli.core.composition import group_choices as group_choices
from ulskip_cli.core.composition import parse_overrides as parse_overrides
from ulskip_cli.core.config_schema import LAYER, Config, DecodingConfig, EngineConfig, TrainingConfig, TuneConfig
from ulskip_cli.core.config_types import describe_type, field_type
from ulskip_cli.core.engines import ENGINES
from ulskip_cli.core.errors import UsageError, require_choice, unknown
from ulskip_cli.core.registry import class_name
from ulskip_cli.core.validation import check_decoding, check_run, check_training

GROUPS = ("model", "task", "strategy", "decoding", "engine", "launcher", "experiment")
TRAINING_GROUPS = ("model", "task", "strategy", "train")
_NOT_RECORDED = ("launcher", "tracker", "tracker_options")
_NOT_IDENTITY = ("name", "results_dir", "sweep", "alternatives", "memory_budget", *_NOT_RECORDED)  # they change no result
PATCH_KEYS = ("patch", "patch_rank")
SKIPPING_KEYS = ("unit", *PATCH_KEYS)  # of all strategies that skip layers
_PATCH_CALIBRATION = ("responses", "patch_tokens", "patch_weights", "patch_order", "patch_centered")
_NOT_OPTIONS = ("_target_", "name", "description")
_BASELINE: dict[str, Any] = {
    "ratio": 1.0,
    "ratio_basis": "layers",
    "prompt_layers": "all",
    "baseline": True,
    "baseline_engine": None,
    "baseline_model": None,
}


def compose(overrides: Sequence[str], extra_dir: Path | None = None) -> Config:
    """Build a run's configuration from overrides and a user's config folder; raise UsageError for an invalid key or value."""
    config = compose_unvalidated(overrides, extra_dir)
    check_run(config)
    return config


def compose_unvalidated(overrides: Sequence[str], extra_dir: Path | None = None) -> Config:
    """Build the configuration of a run; check names and types, but neither bounds nor combinations of values."""
    config: Config = _to_schema(compose_untyped("config", GROUPS, overrides, extra_dir), Config)
    return config


def compose_training(overrides: Sequence[str], extra_dir: Path | None = None) -> TrainingConfig:
    """Build the checked configuration of a training run; see `compose`."""
    composed = compose_untyped("train", TRAINING_GROUPS, overrides, extra_dir)
    if "ratios" in composed.train and not OmegaConf.is_list(composed.train.ratios):
        composed.train.ratios = [composed.train.ratios]
    config: TrainingConfig = _to_schema(composed, TrainingConfig)
    check_training(config)
    return config


def compose_tuning(overrides: Sequence[str], extra_dir: Path | None = None) -> TuneConfig:
    """Build the checked configuration of `ulskip tune`; see `compose`."""
    config: TuneConfig = _to_schema(compose_untyped("tune", GROUPS, overrides, extra_dir), TuneConfig)
    check_run(config)
    return config


def decoding_of(values: Mapping[str, Any]) -> DecodingConfig:
    """Build a greedy decoding configuration with the keys in `values` changed; raise UsageError for an invalid key or value."""
    refuse_renamed(f"decoding.{key}" for key in values)
    other = ("name", "description", "draft_tokens", "draft_vocab")
    known = [one.name for one in fields(DecodingConfig) if one.name not in other]
    for key in values:
        require_choice("decoding option", key, known)
    config: DecodingConfig = _to_schema(OmegaConf.create({"name": "custom", **values}), DecodingConfig)
    check_decoding(config)
    return config


def instantiate(node: dict[str, Any], group: str) -> Any:
    """Build the task or strategy that a config names in `_target_`; raise UsageError if a value does not fit its field.

    Texts are literal, because the config may come from a row: only overrides of the user can contain interpolations.
    """
    return _convert(OmegaConf.create(_escape(options_of(node))), options_class(node, group), prefix=f"{group}.")


def options_class(node: Mapping[str, Any], group: str) -> type:
    """Return the dataclass that a task or strategy config names in `_target_`; raise UsageError if there is no such class."""
    target = class_name(node, group, config_dir())
    try:
        found = pkgutil.resolve_name(target)
    except Exception as error:  # the module is the user's own and may fail in any way
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UsageError(f"{group}={node.get('name')}: cannot import the class {target} of _target_ ({reason})") from None
    if not is_dataclass(found) or not isinstance(found, type):
        raise UsageError(f"{group}={node.get('name')}: expected _target_ to name a dataclass, got {target}")
    if group == "strategy" and not hasattr(found, "follows_ratio"):
        raise UsageError(f"strategy={node.get('name')}: expected {target} to define follows_ratio, num_kept and kept_layers")
    return found


def options_of(node: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a task or strategy config, without its class, name and description."""
    return {key: value for key, value in node.items() if key not in _NOT_OPTIONS}


def shown_options(node: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a strategy config as rows and plans store them, without unit=layer and those of an unused patch."""
    options = options_of(node)
    unused = {"none": PATCH_KEYS, "low_rank": ()}.get(options.get("patch", "none"), PATCH_KEYS[1:])
    hidden = [("unit", LAYER), ("search_patch", False)]
    return {key: value for key, value in options.items() if key not in unused and (key, value) not in hidden}


def identity(config: Config) -> str:
    """Return a hash of everything in a configuration that changes its results, as 12 hex digits."""
    canonical, strategy = resolved_config(config), instantiate(config.strategy, "strategy")
    if not strategy.follows_ratio:
        canonical.update(ratio=None, ratio_basis=None)
    if hasattr(strategy, "stands_for"):
        kept = {key: canonical["strategy"][key] for key in ("_target_", "name", *SKIPPING_KEYS) if key in canonical["strategy"]}
        canonical["strategy"] = {**kept, **strategy.stands_for()}
    if config.strategy["name"] == "full":
        canonical.update(prompt_layers="all")
    for key in _NOT_IDENTITY:
        canonical.pop(key)
    drop_unused(canonical)
    _place_engine(canonical)
    for group in ("model", "task", "strategy", "decoding"):
        canonical[group].pop("description", None)
    if not needs_held_out(config.strategy):
        canonical.pop("calibration")
    if not config.decoding.draft_tokens:
        canonical["decoding"].pop("draft_vocab")
    for one in (canonical, canonical.get("calibration", {})):  # a default that earlier versions did not have
        if not one.get("offset"):
            one.pop("offset", None)
    if not crosses_engines(config):
        canonical.pop("baseline_engine")
    if config.baseline_model is None:
        canonical.pop("baseline_model")
    else:
        canonical["baseline_model"].pop("description")
    return hashlib.sha256(json.dumps(canonical, sort_keys=True).encode()).hexdigest()[:12]


def _place_engine(canonical: dict[str, Any]) -> None:
    """Move an engine of torch to the place and the name that it had in earlier versions, so that identities stay the same."""
    engine = canonical.pop("engine")
    if ENGINES[engine["name"]].is_runtime:
        canonical["engine"] = {key: engine[key] for key in ("name", "weights")}
    canonical["decoding"]["engine"] = "fast" if engine["name"] == "torch" else engine["name"]


def drop_unused(plain: dict[str, Any]) -> None:
    """Remove keys of units, patches and skip adapters that a plain configuration does not use.

    So a configuration that skips whole layers without these keeps the identity that it had before the keys existed.
    """
    strategy, kind = plain["strategy"], plain["strategy"].get("patch", "none")
    searched = strategy.get("search_patch", False)
    if strategy.get("unit") == LAYER:
        strategy.pop("unit")
    for key, used in (("patch", kind != "none"), ("patch_rank", kind == "low_rank"), ("search_patch", searched)):
        if not used:
            strategy.pop(key, None)
    if not plain["model"]["skip_adapter"]:
        plain["model"].pop("skip_adapter")
    for key in _PATCH_CALIBRATION if kind == "none" and not searched else ():
        plain.get("calibration", {}).pop(key, None)


def needs_held_out(strategy: Mapping[str, Any]) -> bool:
    """Return True if a run measures something on held-out examples: options of the strategy, or its patches."""
    return not is_calibrated(dict(strategy)) or strategy.get("patch", "none") != "none"


def is_calibrated(strategy: dict[str, Any]) -> bool:
    """Return True if a strategy needs no held-out examples: it has no calibrated options, or their values are set."""
    return getattr(instantiate(strategy, "strategy"), "is_calibrated", True)


def baseline_config(config: Config) -> Config:
    """Return the configuration of the baseline: the same experiment with every layer of its model kept and no drafts."""
    full: dict[str, Any] = yaml.safe_load((config_dir() / "strategy" / "full.yaml").read_text("utf-8"))
    model = replace(copy.deepcopy(config.baseline_model or config.model), skip_adapter=[])  # it does not change the full model
    changes = {**_BASELINE, "engine": baseline_engine(config), "decoding": without_drafts(config.decoding)}
    return replace(copy.deepcopy(config), strategy=full, model=model, **changes)


def baseline_engine(config: Config) -> EngineConfig:
    """Return the engine of the baseline."""
    return EngineConfig(config.baseline_engine) if config.baseline_engine else copy.deepcopy(config.engine)


def crosses_engines(config: Config) -> bool:
    """Return True if the baseline runs in another engine or weights format than the point."""
    own, other = config.engine, baseline_engine(config)
    return (own.name, own.weights) != (other.name, other.weights)


def has_other_baseline(config: Config) -> bool:
    """Return True if the baseline differs from the point also at full depth: in its model, engine or weights format."""
    return config.baseline_model is not None or crosses_engines(config)


def without_drafts(decoding: DecodingConfig) -> DecodingConfig:
    """Return the decoding of the baseline: it chooses tokens in the same way as `decoding`, but without drafts."""
    if not decoding.draft_tokens:
        return decoding
    return replace(decoding, name="sample" if decoding.do_sample else "greedy", draft_tokens=0, draft_vocab=0)


def resolved_config(config: Config | TrainingConfig) -> dict[str, Any]:
    """Return a configuration as plain, JSON-ready values."""
    return asdict(config)


def recorded_config(config: Config | TrainingConfig) -> dict[str, Any]:
    """Return the configuration that a row or a training.json stores: all keys except `launcher` and `tracker`."""
    return {key: value for key, value in resolved_config(config).items() if key not in _NOT_RECORDED}


def to_yaml(config: Config | TrainingConfig) -> str:
    """Return the configuration as YAML, in the form that results folders store."""
    return OmegaConf.to_yaml(OmegaConf.create(recorded_config(config)))


def _to_schema(composed: DictConfig, schema: type) -> Any:
    try:
        OmegaConf.resolve(composed)
    except OmegaConfBaseException as error:
        raise UsageError(f"{str(error).splitlines()[0]}; ${{...}} must contain the name of an existing key") from None
    missing = OmegaConf.missing_keys(composed)
    if missing:
        example = "; e.g. model.path=<hub id or folder>" if "model.path" in missing else ""
        raise UsageError(f"expected a value for {', '.join(sorted(missing))}{example}")
    model = composed.get("model")
    if OmegaConf.is_dict(model) and isinstance(model.get("skip_adapter"), str):
        model.skip_adapter = [model.skip_adapter]
    return _convert(composed, schema)


def _escape(value: Any) -> Any:
    """Return a JSON value in which no text is an interpolation of OmegaConf, which could read the environment."""
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", lambda found: 2 * found[1] + r"\${", value)
    if isinstance(value, dict):
        return {key: _escape(one) for key, one in value.items()}
    return [_escape(one) for one in value] if isinstance(value, list) else value


def _convert(values: DictConfig, schema: type, prefix: str = "") -> Any:
    """Convert values to an object of a dataclass, or raise UsageError with the key of a value that does not fit."""
    try:
        merged = _merge(values, schema)
        if merged is not None:
            return OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:  # a required key is missing, or a class has fields of unsupported types
        raise UsageError(f"{prefix}{error.full_key or schema.__name__}: {str(error).splitlines()[0]}") from None
    key = _misfit(values, schema)
    branch, _, name = key.rpartition(".")
    known = [one.name for one in fields(field_type(schema, branch) if branch else schema)]
    if name not in known:
        raise unknown("key", prefix + key, [f"{prefix}{branch}{'.' if branch else ''}{one}" for one in known])
    got: Any = OmegaConf.to_container(values)
    for part in key.split("."):
        got = got[part]
    expected = describe_type(field_type(schema, key)) or "of the type that its class declares"
    raise UsageError(f"expected {prefix}{key} to be {expected}, got {json.dumps(got, default=str)[:80]}")


def _merge(values: DictConfig, schema: type) -> DictConfig | None:
    structured = OmegaConf.structured(schema)
    OmegaConf.set_readonly(structured, False)
    try:
        return OmegaConf.merge(structured, values)  # type: ignore[return-value]
    except OmegaConfBaseException:
        return None


def _misfit(values: DictConfig, schema: type) -> str:
    """Return the dotted name of the first key whose value does not fit a dataclass."""
    key = next(key for key in map(str, values) if _merge(OmegaConf.masked_copy(values, key), schema) is None)
    inner = field_type(schema, key)
    if is_dataclass(inner) and OmegaConf.is_dict(values[key]):
        return f"{key}.{_misfit(values[key], inner)}"  # type: ignore[arg-type]
    return key
