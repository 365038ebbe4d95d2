"""The reference of the configuration keys: one walk over the fields, and what `ulskip config` and
the page of keys show of it.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from pydantic import BaseModel
from pydantic_core import PydanticUndefined, to_jsonable_python

from ulskip_cli.core.config import (
    CHOICES,
    GROUPS,
    PRIMARY,
    TRAINING_GROUPS,
    compose_files,
    description,
    group_choices,
    preset_class,
    read_choice,
)
from ulskip_cli.core.config_schema import Config, TrainingConfig
from ulskip_cli.core.errors import unknown
from ulskip_cli.core.options import Options, choices_of, describe_type, options_in, use_of

ALL_GROUPS = tuple(dict.fromkeys((*GROUPS, *TRAINING_GROUPS)))
TITLES = {
    "config": "Keys of all commands but tune and train",
    "tune": "Further keys of tune",
    "train": "Further keys of train",
}  # of the keys outside groups, by primary configuration
MAX_DEFAULT = 40  # characters of a default value
Panels = Iterable[tuple[str, Mapping[str, str]]]  # title, and texts by name


@dataclass(frozen=True)
class ConfigKey:
    """A configuration key with its dotted name, its type in plain words, and the commands that read
    it.
    """

    name: str
    meaning: str
    choices: tuple[str, ...]
    type: str
    default: object
    commands: tuple[str, ...] = ()


def keys_of(
    kind: type[BaseModel],
    values: Mapping[str, object],
    prefix: str = "",
    inherited: tuple[str, ...] = (),
) -> Iterator[ConfigKey]:
    """Yield the keys of a class and its sections, each after `prefix`.

    `values` replace the defaults. A key without commands gets the `inherited` ones of its section.
    """
    for name, field in kind.model_fields.items():
        if name == "name" and prefix:  # the name of a preset, which its choice sets
            continue
        commands = tuple(sorted(use_of(field).read_by)) or inherited
        inner, default = options_in(field.annotation), field.get_default(call_default_factory=True)
        value = values.get(name, default)
        # A section has an object as its default, or none if a preset must be chosen.
        if inner and (isinstance(default, Options) or default is PydanticUndefined):
            inner_values = value if isinstance(value, Mapping) else {}
            yield from keys_of(inner, inner_values, f"{prefix}{name}.", commands)
            continue
        yield ConfigKey(
            prefix + name,
            field.description or "",
            choices_of(field.annotation),
            describe_type(field.annotation),
            None if value is PydanticUndefined else to_jsonable_python(value),
            commands,
        )


def describe_choices(group: str) -> dict[str, str]:
    """Return the choices of a group with descriptions."""
    return {name: description(group, name) for name in group_choices(group)}


def default_choice(group: str) -> str | None:
    """Return the default choice of a group; None for experiments."""
    return {**compose_files("train").choices, **compose_files("config").choices}.get(group)


def group_keys(group: str, choice: str) -> list[ConfigKey]:
    """Return the keys of a choice, with its values as defaults; experiments have no keys."""
    if group == "experiment":
        return []
    field = (Config.model_fields | TrainingConfig.model_fields)[group]
    kind = preset_class(group, choice) if group in CHOICES else options_in(field.annotation)
    return list(keys_of(kind, read_choice(group, choice), f"{group}.")) if kind else []


def keys_outside_groups(primary: str) -> list[ConfigKey]:
    """Return the keys in no group, also nested ones such as `speed.seconds`. `sweep` has none of
    its own: it lists values of other keys.
    """
    kind, groups = PRIMARY[primary]
    keys = keys_of(kind, compose_files(primary).values())
    return [key for key in keys if key.name.partition(".")[0] not in (*groups, "sweep")]


def describe(name: str) -> Panels:
    """Return what `ulskip config NAME` prints of a group, a choice such as `strategy=search`, a key
    or a section; without a name, of all. Raise UsageError for an unknown name.
    """
    group, _, choice = name.partition("=")
    if group in ALL_GROUPS and choice:
        meanings = _meanings(group_keys(group, choice))
        return [(name, {name: description(group, choice)}), (f"Keys of {name}", meanings)]
    sections = list(_sections())
    if not name:
        title = "Config groups and their choices; `ulskip config GROUP` describes them"
        choices = {f"{group}=": ", ".join(group_choices(group)) for group in ALL_GROUPS}
        return [(title, choices), *((title, _meanings(keys)) for title, keys in sections)]
    known = [key for _, keys in sections for key in keys]
    shown = [key for key in known if f"{key.name}.".startswith(f"{name}.")]
    panels = []
    if name in ALL_GROUPS:
        choices = {f"{name}={key}": text for key, text in describe_choices(name).items()}
        panels.append((f"Choices of {name}", choices))
    if shown:
        panels.append((f"Keys of {name}", _meanings(shown)))
    if not panels:
        names = [*ALL_GROUPS, *(key.name for key in known)]
        raise unknown("config group or key", name, names, "`ulskip config` lists all")
    return panels


def _sections() -> Iterator[tuple[str, list[ConfigKey]]]:
    """Yield all keys under titles: those outside groups, each once, and those of groups."""
    shown = set[str]()
    for primary, title in TITLES.items():
        keys = [key for key in keys_outside_groups(primary) if key.name not in shown]
        yield title, keys
        shown |= {key.name for key in keys}
    for group in ALL_GROUPS:
        if inside := _keys_of_choices(group):
            yield f"Keys {group}.* of all choices", inside


def _keys_of_choices(group: str) -> list[ConfigKey]:
    """Return the keys of all choices of a group, preferring values of the default choice."""
    default, keys = default_choice(group), dict[str, ConfigKey]()
    for choice in sorted(group_choices(group), key=lambda name: name != default):
        for key in group_keys(group, choice):
            keys.setdefault(key.name, key)
    return list(keys.values())


def _meanings(keys: Iterable[ConfigKey]) -> dict[str, str]:
    return {key.name: _meaning(key) for key in keys}


def _meaning(key: ConfigKey) -> str:
    value = json.dumps(key.default, ensure_ascii=False).replace('"', "")
    shown = value if len(value) <= MAX_DEFAULT else value[: MAX_DEFAULT - 1] + "…"
    choices = f" [{'|'.join(key.choices)}]" if key.choices else ""
    return f"{key.meaning}{choices} [default: {shown}]"
