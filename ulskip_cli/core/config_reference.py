"""The reference of the configuration keys: meaning, choices, type and default, read from the schema and the YAML files.

`--help`, `ulskip config`, `--print-config` and shell completion show it. Nothing here needs Hydra.
"""

from collections.abc import Iterator, Mapping
from dataclasses import Field, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from ulskip_cli.core.composition import check_choice, config_dir
from ulskip_cli.core.composition import group_choices as group_choices
from ulskip_cli.core.config import GROUPS, TRAINING_GROUPS, options_class, resolved_config
from ulskip_cli.core.config_schema import (
    Config,
    DecodingConfig,
    EngineConfig,
    LauncherConfig,
    ModelConfig,
    TrainingConfig,
    TrainOptions,
    TuneConfig,
)
from ulskip_cli.core.config_types import describe_type, type_hints
from ulskip_cli.core.errors import UsageError, require_choice

PRIMARY = {
    "config": (Config, GROUPS),
    "tune": (TuneConfig, GROUPS),
    "train": (TrainingConfig, TRAINING_GROUPS),
}  # of configs/<primary>.yaml
ALL_GROUPS = tuple(dict.fromkeys((*GROUPS, *TRAINING_GROUPS)))
_GROUP_SCHEMAS: dict[str, type] = {
    "model": ModelConfig,
    "decoding": DecodingConfig,
    "engine": EngineConfig,
    "launcher": LauncherConfig,
    "train": TrainOptions,
}
_NOT_KEYS = ("_target_", "name", "description")
_COMMENT_COLUMN = 40


@dataclass(frozen=True)
class ConfigKey:
    """One configuration key: its dotted name, meaning, choices, type in plain words, and default."""

    name: str
    meaning: str
    choices: tuple[str, ...]
    type: str
    default: Any


def describe_choices(group: str, extra_dir: Path | None = None) -> dict[str, str]:
    """Return the choices of a config group with their descriptions."""
    files = group_choices(group, extra_dir)
    return {
        name: _first_comment(file) if group == "experiment" else _describe(group, name, extra_dir)
        for name, file in files.items()
    }


def default_choices(primary: str) -> dict[str, str]:
    """Return the choice of each config group that `configs/<primary>.yaml` selects by default."""
    entries = _primary_values(primary)["defaults"]
    return {group: choice for entry in entries if isinstance(entry, dict) for group, choice in entry.items() if choice}


def default_choice(group: str) -> str | None:
    """Return the choice of a config group that is selected by default, or None for experiments."""
    return {**default_choices("train"), **default_choices("config")}.get(group)


def implied_choices(group: str, choice: str) -> dict[str, str]:
    """Return the choices of other groups that a choice selects, such as the model of `task=cnn_dm`."""
    entries = yaml.safe_load(group_choices(group)[choice].read_text("utf-8")).get("defaults", [])
    overrides = [next(iter(entry.items())) for entry in entries if isinstance(entry, dict)]
    return {str(key).removeprefix("override /").partition("@")[0]: value for key, value in overrides}


def group_keys(group: str, choice: str, extra_dir: Path | None = None) -> list[ConfigKey]:
    """Return the keys of a group with the values of one of its choices as defaults; experiments have no keys."""
    if group == "experiment":
        return []
    values = read_choice(group, choice, extra_dir)
    schema = _GROUP_SCHEMAS.get(group) or options_class(values, group)
    return list(_keys(schema, values, f"{group}."))


def top_level_keys(primary: str) -> list[ConfigKey]:
    """Return the keys of `configs/<primary>.yaml` outside the config groups, including nested ones such as `speed.pairs`."""
    schema, groups = PRIMARY[primary]
    values = _primary_values(primary)
    return [key for key in _keys(schema, values, "") if key.name.partition(".")[0] not in (*groups, "sweep")]


def _primary_values(primary: str) -> dict[str, Any]:
    """Read `configs/<primary>.yaml`, merged over the primary files that it is based on."""
    own: dict[str, Any] = yaml.safe_load((config_dir() / f"{primary}.yaml").read_text("utf-8"))
    merged: dict[str, Any] = {}
    for base in own["defaults"]:
        if isinstance(base, str) and base in PRIMARY:
            merged = _primary_values(base)
    return {**merged, **own, "defaults": [*merged.get("defaults", []), *own["defaults"]]}


def read_choice(group: str, choice: str, extra_dir: Path | None = None) -> dict[str, Any]:
    """Read the YAML file of a choice, merged over the choices of the same group in its `defaults` list."""
    merged = OmegaConf.merge(*_with_bases(group, choice, extra_dir, ()))
    values: dict[str, Any] = OmegaConf.to_container(merged)  # type: ignore[assignment]
    missing = [key for key in ("_target_", "name") if key not in values]
    if group in ("task", "strategy") and missing:
        raise UsageError(f"expected the key {missing[0]} in {group_choices(group, extra_dir)[choice]}, got none; add it")
    return values


def to_commented_yaml(config: Config | TrainingConfig) -> str:
    """Return a configuration as YAML in which every key has its meaning and its choices as a comment."""
    classes = {group: options_class(getattr(config, group), group) for group in ("task", "strategy")}
    return "".join(_commented(type(config), resolved_config(config), classes, ""))


def _with_bases(group: str, choice: str, extra_dir: Path | None, inside: tuple[str, ...]) -> Iterator[DictConfig]:
    """Yield the file of a choice after the files that it is based on."""
    file = group_choices(group, extra_dir)[require_choice(f"{group} in defaults", choice, group_choices(group, extra_dir))]
    if choice in inside:
        raise UsageError(f"expected defaults without a cycle in {file}, got {' -> '.join([*inside, choice])}")
    check_choice(file)
    own = OmegaConf.load(file)
    assert isinstance(own, DictConfig)
    for entry in own.pop("defaults", None) or []:
        if isinstance(entry, str) and entry != "_self_":
            yield from _with_bases(group, entry, extra_dir, (*inside, choice))
    yield own


def _keys(schema: type, values: Mapping[str, Any], prefix: str) -> Iterator[ConfigKey]:
    hints, order = type_hints(schema), list(values)
    for one in sorted(fields(schema), key=lambda one: order.index(one.name) if one.name in order else len(order)):
        if one.name in _NOT_KEYS and prefix:
            continue
        value, hint = values.get(one.name), hints[one.name]
        if is_dataclass(hint):
            yield from _keys(hint, value or {}, f"{prefix}{one.name}.")  # type: ignore[arg-type]
        else:
            choices = tuple(one.metadata.get("choices", ()))
            yield ConfigKey(prefix + one.name, one.metadata.get("help", ""), choices, describe_type(hint), value)


def _commented(schema: type, values: Mapping[str, Any], classes: Mapping[str, type], indent: str) -> Iterator[str]:
    known = {one.name: one for one in fields(schema)}
    hints = type_hints(schema)
    for key, value in values.items():
        inner = classes.get(key) or hints.get(key)
        if isinstance(value, dict) and is_dataclass(inner):
            yield f"{indent}{key}:\n"
            yield from _commented(inner, value, {}, f"{indent}  ")  # type: ignore[arg-type]
            continue
        comment = _comment(known[key]) if key in known else ""
        for line in _dump({key: value}):
            yield f"{f'{indent}{line}':<{_COMMENT_COLUMN}}  # {comment}\n" if comment else f"{indent}{line}\n"
            comment = ""


class _CompactDumper(yaml.SafeDumper):
    """A YAML dumper that writes every list, and every text with line breaks, in one line."""


_CompactDumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style='"' if len(text.splitlines()) > 1 else None
    ),
)
_CompactDumper.add_representer(
    list, lambda dumper, items: dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=True)
)


def _dump(values: Mapping[str, Any]) -> list[str]:
    text = yaml.dump(values, Dumper=_CompactDumper, sort_keys=False, allow_unicode=True, width=float("inf"))
    return str(text).rstrip("\n").split("\n")


def _comment(one: "Field[Any]") -> str:
    choices = " | ".join(one.metadata.get("choices", ()))
    return "; ".join(part for part in (one.metadata.get("help", ""), choices) if part)


def _describe(group: str, name: str, extra_dir: Path | None) -> str:
    return str(read_choice(group, name, extra_dir).get("description", ""))


def _first_comment(file: Path) -> str:
    """Return the first comment of an experiment that is not Hydra's package directive."""
    lines = [line.lstrip("# ").strip() for line in file.read_text("utf-8").splitlines() if line.startswith("#")]
    return next((line for line in lines if not line.startswith("@")), "")
