"""How overrides become a checked, resolved configuration. Imports no torch."""

import copy
import functools
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ulskip_cli.core.config_schema import Config, DecodingConfig, TrainingConfig
from ulskip_cli.core.errors import UnknownKey, UsageError, require_choice, unknown
from ulskip_cli.core.validation import check_decoding, check_run, check_training

GROUPS = ("model", "task", "strategy", "decoding", "launcher", "experiment")
TRAINING_GROUPS = ("model", "task", "strategy", "train")
# What changes no result stays out of a point's identity.
_NOT_IDENTITY = ("name", "results_dir", "sweep", "memory", "launcher")
_LANGUAGE_NAMES = ("source_language", "target_language")
_BASELINE: dict[str, Any] = {"ratio": 1.0, "ratio_basis": "layers", "prompt_layers": "all", "baseline": True}


def config_dir() -> Path:
    """The folder of the shipped configs: inside an installed wheel, or beside the package in a checkout."""
    inside = Path(__file__).parents[1] / "configs"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "configs"


def group_choices(group: str, extra_dir: Path | None = None) -> dict[str, Path]:
    """The choices of a group, by name: the shipped ones and those of a user's own folder."""
    folders = [config_dir(), *([extra_dir] if extra_dir else [])]
    return {path.stem: path for folder in folders for path in sorted((folder / group).glob("*.yaml"))}


def compose(overrides: Sequence[str], extra_dir: Path | None = None) -> Config:
    """The checked configuration of a run that `key=value` overrides describe.

    Args:
        overrides: Hydra's override syntax; hyphens and underscores in names are the same.
        extra_dir: a user's own folder of config groups, searched after the shipped ones.

    Raises:
        UsageError: a key, a group or a value is unknown or of the wrong type.
    """
    config = compose_unvalidated(overrides, extra_dir)
    check_run(config)
    return config


def compose_unvalidated(overrides: Sequence[str], extra_dir: Path | None = None) -> Config:
    """The same, with names and types checked and not whether the values are within bounds and go together."""
    config = _structured(_composed("config", GROUPS, overrides, extra_dir), Config)
    assert isinstance(config, Config)
    return config


def decoding_of(values: Mapping[str, Any]) -> DecodingConfig:
    """Greedy decoding with some keys of `decoding` changed, checked.

    Raises:
        UsageError: a key is unknown, or its value of the wrong type or out of bounds.
    """
    known = [one.name for one in fields(DecodingConfig) if one.name not in ("name", "description", "draft_tokens")]
    for key in values:
        require_choice("decoding option", key, known)
    config = _structured(OmegaConf.create({"name": "custom", **values}), DecodingConfig)
    assert isinstance(config, DecodingConfig)
    check_decoding(config)
    return config


def compose_training(overrides: Sequence[str], extra_dir: Path | None = None) -> TrainingConfig:
    """The checked configuration of a training; see `compose`."""
    composed = _composed("train", TRAINING_GROUPS, overrides, extra_dir)
    if not OmegaConf.is_list(composed.train.ratios):
        composed.train.ratios = [composed.train.ratios]
    config = _structured(composed, TrainingConfig)
    assert isinstance(config, TrainingConfig)
    check_training(config)
    return config


def _composed(primary: str, groups: Sequence[str], overrides: Sequence[str], extra_dir: Path | None) -> DictConfig:
    """Hydra's composition of one of the primary configs, unknown keys and groups refused with what is near."""
    if extra_dir is not None and not extra_dir.is_dir():
        raise UsageError(f"--config-dir: no folder at {extra_dir}")
    keys = [_key(text) for text in overrides]
    if "model.path" in keys and "model" not in keys and not _chooses_a_shape(primary, groups, overrides, extra_dir):
        overrides = ["model=hf", *overrides]
    spelt = [_respelt(override, groups, extra_dir) for override in overrides]
    choices = [text for text in spelt if _key(text) in groups]
    chosen = _chosen(primary, tuple(choices), extra_dir, _stamp(extra_dir))
    known = list(_dotted(chosen))
    for text in spelt:
        if not text.startswith(("+", "~")) and _key(text) not in (*groups, *known):
            raise UnknownKey(str(unknown("key", _key(text), _nearest_first(_key(text), known))), _key(text))
    plain = [text for text in spelt if text not in choices]
    if any(text.startswith(("+", "~")) for text in plain):
        return _hydra_compose(primary, spelt, extra_dir)
    return _updated(copy.deepcopy(chosen), plain)


@functools.lru_cache(maxsize=128)  # composing takes a tenth of a second, and a grid has many points of few choices
def _chosen(primary: str, choices: tuple[str, ...], extra_dir: Path | None, stamp: object) -> DictConfig:
    """The composition of choices among groups alone; not to be changed."""
    return _hydra_compose(primary, choices, extra_dir)


def _stamp(extra_dir: Path | None) -> object:
    """What changes when a user's own configs do."""
    files = sorted(extra_dir.rglob("*.yaml")) if extra_dir else []
    return tuple((file, file.stat().st_mtime_ns, file.stat().st_size) for file in files)


def _updated(config: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """A composition with values set as Hydra sets them."""
    for one in parse_overrides(overrides):
        try:
            OmegaConf.update(config, one.key_or_group, one.value(), merge=True)
        except OmegaConfBaseException:
            raise UsageError(f"Error merging override {one.input_line}") from None
    return config


def _chooses_a_shape(primary: str, groups: Sequence[str], overrides: Sequence[str], extra_dir: Path | None) -> bool:
    """Whether an experiment chooses random weights, so that `model.path` names their shape."""
    chosen = [_respelt(text, groups, extra_dir) for text in overrides if _key(text) == "experiment"]
    return bool(chosen) and _chosen(primary, tuple(chosen), extra_dir, _stamp(extra_dir)).model.source == "random"


def identity(config: Config) -> str:
    """12 hex digits of everything in a configuration that changes its results."""
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
    task = canonical["task"]
    if "source_language" in task:  # points from before wmt had names of languages stay finished
        canonical["task"] = {key: value for key, value in task.items() if key not in _LANGUAGE_NAMES or value is not None}
    if not config.decoding.draft_tokens:
        canonical["decoding"].pop("draft_tokens")  # points from before there were drafts stay finished
    text = json.dumps(canonical, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def is_calibrated(strategy: dict[str, Any]) -> bool:
    """Whether a strategy needs no held-out examples: it never does, or what it would measure is given."""
    return getattr(instantiate(strategy, "strategy"), "is_calibrated", True)


def baseline_config(config: Config) -> Config:
    """The same experiment with every layer kept: what a strategy is compared with."""
    return replace(copy.deepcopy(config), strategy=_full(), decoding=without_drafts(config.decoding), **_BASELINE)


def _full() -> dict[str, Any]:
    """The configuration of the strategy that keeps all layers."""
    loaded: dict[str, Any] = yaml.safe_load((config_dir() / "strategy" / "full.yaml").read_text("utf-8"))
    return loaded


def without_drafts(decoding: DecodingConfig) -> DecodingConfig:
    """The same choice of tokens, one at a time: what drafting is compared with."""
    if not decoding.draft_tokens:
        return decoding
    return replace(decoding, name="sample" if decoding.do_sample else "greedy", draft_tokens=0)


def resolved_config(config: Config | TrainingConfig) -> dict[str, Any]:
    """Plain, JSON-ready values."""
    return asdict(config)


def recorded_config(config: Config) -> dict[str, Any]:
    """The same as a row keeps it: what started a run says nothing about it."""
    return {key: value for key, value in resolved_config(config).items() if key != "launcher"}


def to_yaml(config: Config | TrainingConfig) -> str:
    """The configuration as YAML, as `--print-config` shows it and results keep it."""
    return OmegaConf.to_yaml(OmegaConf.create(resolved_config(config)))


def instantiate(node: dict[str, Any], group: str) -> Any:
    """The object that a task or strategy config describes, its values checked against the class's fields.

    The class is named by `_target_`, so that a plug-in is one file and one YAML.

    Raises:
        UsageError: no such class, an unknown key or a value of the wrong type.
    """
    from hydra.utils import get_class

    values = {key: value for key, value in node.items() if key not in ("_target_", "name", "description")}
    try:
        schema = OmegaConf.structured(get_class(node["_target_"]))
    except Exception as error:
        raise UsageError(f"{group} {node.get('name')!r}: cannot load {node.get('_target_')!r} ({error})") from None
    OmegaConf.set_readonly(schema, False)
    try:
        return OmegaConf.to_object(OmegaConf.merge(schema, values))
    except OmegaConfBaseException as error:
        raise _plain(error, prefix=f"{group}.") from None


def parse_overrides(overrides: Sequence[str]) -> list[Any]:
    """Hydra's own reading of `key=value` overrides, sweeps included."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    parsed = []
    for text in overrides:
        try:
            parsed.append(parser.parse_override(text))
        except HydraException:
            raise UsageError(f"cannot read '{text}'; expected key=value, e.g. task=wmt ratio=2.0") from None
    return parsed


def _hydra_compose(primary: str, overrides: Sequence[str], extra_dir: Path | None) -> DictConfig:
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException

    search = [f"hydra.searchpath=[file://{extra_dir.resolve()}]"] if extra_dir else []
    try:
        with initialize_config_dir(str(config_dir().resolve()), version_base=None):
            return hydra_compose(primary, [*overrides, *search])
    except (HydraException, OmegaConfBaseException) as error:
        raise UsageError(" ".join(str(error).split("\n")[0].split())) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"{mark.name}, line {mark.line + 1}" if mark else "a config"
        raise UsageError(f"{where} is no valid YAML ({error.problem})") from None


def _respelt(text: str, groups: Sequence[str], extra_dir: Path | None) -> str:
    """The override with group choices as their files spell them; unknown choices are refused."""
    parsed = parse_overrides([text])[0]
    if parsed.is_sweep_override():
        raise UsageError(f"'{text}' asks for several values; use `ulskip sweep {text}`")
    key, value = parsed.key_or_group, parsed.value()
    if key not in groups or (key == "experiment" and value is None):
        return text
    known = group_choices(key, extra_dir)
    folded = {name.replace("-", "_"): name for name in known}
    name = folded.get(str(value).replace("-", "_"))
    if name is None:
        raise unknown(key, value, known)
    return text.split("=", 1)[0] + "=" + name


def _key(text: str) -> str:
    return text.split("=", 1)[0].lstrip("+~")


def _dotted(node: DictConfig, prefix: str = "") -> Iterator[str]:
    """Every key of a config with its path, branches included."""
    for key in node:
        path = prefix + str(key)
        yield path
        if OmegaConf.is_dict(node._get_node(key)) and not node._get_node(key)._is_none():  # type: ignore[union-attr]
            yield from _dotted(node[key], f"{path}.")


def _nearest_first(key: str, known: Sequence[str]) -> list[str]:
    """The keys beside the one meant: those of its branch, or the top ones."""
    branch = key.rpartition(".")[0]
    beside = [name for name in known if name.rpartition(".")[0] == branch and not name.endswith(("_target_", "description"))]
    return beside or [name for name in known if "." not in name]


def _structured(composed: DictConfig, schema: type) -> Any:
    """The composed values as the schema's object, checked against its types."""
    try:
        missing = OmegaConf.missing_keys(composed)
        if missing:
            example = "; e.g. model.path=<hub id or folder>" if "model.path" in missing else ""
            raise UsageError(f"expected a value for {', '.join(sorted(missing))}{example}")
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), composed))
    except OmegaConfBaseException as error:
        raise _plain(error) from None


def _plain(error: OmegaConfBaseException, prefix: str = "") -> UsageError:
    """OmegaConf's complaint as one line that starts with the key."""
    message = str(error.msg if hasattr(error, "msg") and error.msg else error).split("\n")[0]
    if "is not a ListConfig" in message:
        message = "expected a list, written [a,b]"
    elif "Cannot merge DictConfig with ListConfig" in message or "is not a DictConfig" in message:
        message = "expected keys with values, written {a: 1, b: 2}"
    return UsageError(f"{prefix}{error.full_key}: {message}" if error.full_key else message)
