"""The reference of the configuration keys: one walk over the fields of the classes, with several
printers: `--help`, `ulskip config` and the page of keys.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from pydantic import BaseModel
from pydantic_core import PydanticUndefined, to_jsonable_python

from ulskip_cli.core.config import (
    CHOICES,
    GROUPS,
    PRIMARY,
    TRAINING_GROUPS,
    choice_class,
    group_choices,
    implied_choices,
    primary_of,
    read_choice,
)
from ulskip_cli.core.config_schema import Config, TrainingConfig
from ulskip_cli.core.options import Options, choices_of, describe_type, options_in, use_of

ALL_GROUPS = tuple(dict.fromkeys((*GROUPS, *TRAINING_GROUPS)))


@dataclass(frozen=True)
class ConfigKey:
    """One configuration key: its dotted name, meaning, choices, type in plain words, default, and
    the commands that read it.
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
    """Yield the keys of a class.

    `values` replace the defaults. A key that declares no commands gets the `inherited` commands.
    """
    for name, field in kind.model_fields.items():
        if name == "name" and prefix:
            continue
        commands = tuple(sorted(use_of(field).commands)) or inherited
        inner, default = options_in(field.annotation), field.get_default(call_default_factory=True)
        value = values.get(name, default)
        if inner is not None and (isinstance(default, Options) or default is PydanticUndefined):
            yield from keys_of(
                inner, value if isinstance(value, Mapping) else {}, f"{prefix}{name}.", commands
            )
        else:
            shown = None if value is PydanticUndefined else to_jsonable_python(value)
            meaning, choices = field.description or "", choices_of(field.annotation)
            yield ConfigKey(
                prefix + name, meaning, choices, describe_type(field.annotation), shown, commands
            )


def describe_choices(group: str) -> dict[str, str]:
    """Return the choices of a config group with their descriptions."""
    files = group_choices(group)
    return {name: str(read_choice(group, name).get("description", "")) for name in files}


def default_choice(group: str) -> str | None:
    """Return the choice of a config group that is selected by default, or None for experiments."""
    return {**implied_choices("", "train"), **implied_choices("", "config")}.get(group)


def group_keys(group: str, choice: str) -> list[ConfigKey]:
    """Return the keys of a group with the values of one of its choices as defaults; experiments
    have no keys.
    """
    if group == "experiment":
        return []
    values = read_choice(group, choice)
    if group in CHOICES:
        kind: type[BaseModel] | None = choice_class(values, group)
    else:
        fields = Config.model_fields | TrainingConfig.model_fields
        kind = options_in(fields[group].annotation)
    return list(keys_of(kind, values, f"{group}.")) if kind else []


def top_level_keys(primary: str) -> list[ConfigKey]:
    """Return the keys of a primary configuration that are in no config group, also nested ones such
    as `speed.seconds`.
    """
    kind, groups = PRIMARY[primary]
    keys = keys_of(kind, read_choice("", primary))
    return [
        key
        for key in keys
        if key.name.partition(".")[0] not in (*groups, "sweep", "baseline_model")
    ]


def groups_of(command: str) -> tuple[str, ...]:
    """Return the config groups that a command reads."""
    kind, groups = PRIMARY[primary_of(command)]
    read = [
        group for group in groups if group in kind.model_fields and command in kind.readers(group)
    ]
    return (*read, *(["experiment"] if command in ("run", "sweep", "bench") else []))


def command_keys(command: str, chosen: Mapping[str, str]) -> list[ConfigKey]:
    """Return all keys that a command reads; a config group contributes the keys of its chosen or
    default choice.
    """
    primary, groups = primary_of(command), groups_of(command)
    keys = [key for key in top_level_keys(primary) if command in key.commands]
    for group, choice in {**implied_choices("", primary), **chosen}.items():
        if group in groups:
            keys += [
                key
                for key in group_keys(group, choice)
                if not key.commands or command in key.commands
            ]
    defaults = {"name": "lm_eval"} if command == "lm-eval" else {}
    if command == "bench":
        experiment = read_choice("experiment", "bench")
        defaults = {**experiment, **experiment["sweep"]}
    return [replace(key, default=defaults.get(key.name, key.default)) for key in keys]
