"""Configurations: YAML files and overrides in Hydra's grammar become one frozen, typed and checked
object.

`configs/<primary>.yaml` selects a file of each group in its `defaults`. A file may have bases in
its group, and may select files of other groups. Files state only what differs from the defaults in
the classes. The command line wins over an experiment, an experiment over other files.
"""

import contextlib
import functools
import pkgutil
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast

import yaml
from pydantic import BaseModel, ConfigDict

from ulskip_cli.core.config_schema import (
    Config,
    DecodingConfig,
    ModelConfig,
    Shared,
    TrainingConfig,
    TuneConfig,
)
from ulskip_cli.core.correction import Correction
from ulskip_cli.core.engines import Engine, engine_named, plugin_config_dirs
from ulskip_cli.core.errors import UnknownKey, UsageError, reason, require_choice
from ulskip_cli.core.files import Table, change_texts, is_existing
from ulskip_cli.core.options import (
    Choice,
    field_of,
    options_in,
    parse,
    use_of,
)
from ulskip_cli.core.strategy import Strategy
from ulskip_cli.core.task import Task

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

GROUPS = ("model", "task", "strategy", "correction", "decoding", "engine", "launcher", "experiment")
TRAINING_GROUPS = ("model", "task", "strategy", "train")
CHOICES: dict[str, type[Choice]] = {
    "task": Task,
    "strategy": Strategy,
    "correction": Correction,
    "engine": Engine,
}
_INSTEAD = {
    "model": "; for another model give model.path=<hub id or folder>",
    "task": "; for your own examples give task=jsonl task.file=<file>",
}
# each with a dot at its end, so that task.prompt_key does not begin with task.prompt
_TEXT_KEYS = ("task.prompt.", "task.response.", "task.templates.", "decoding.stop.")
_ESCAPES = {r"\n": "\n", r"\t": "\t", r"\\": "\\"}

PRIMARY: dict[str, tuple[type[Shared], tuple[str, ...]]] = {
    "config": (Config, GROUPS),
    "tune": (TuneConfig, GROUPS),
    "train": (TrainingConfig, TRAINING_GROUPS),
}  # of configs/<primary>.yaml

ChoiceT = TypeVar("ChoiceT", bound=Choice)


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """The safe loader of YAML, which also refuses a key that is given twice, and reads 1e-4 as a
    number.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> Table:
        """Return the keys and values of a mapping; raise an error for a key that is given twice, of
        which YAML would silently use the last value.
        """
        keys = [str(key.value) for key, _ in node.value]  # of [(key node, value node)]
        if len(set(keys)) < len(keys):
            raise yaml.MarkedYAMLError(problem="a key twice", problem_mark=node.start_mark)
        values: Table = super().construct_mapping(node, deep)
        return values


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def compose(overrides: Sequence[str], command: str = "run") -> Config:
    """Build the configuration of a command, such as `run` or `export --format hf`, from overrides.

    Raises UsageError for an invalid key or value, or a key that the command does not read.
    `make_plan` refuses values that exclude each other.
    """
    config = compose_unvalidated(overrides, command)
    # An experiment file can list the values of a grid under the key `sweep`.
    if config.sweep and command not in ("sweep", "bench"):
        raise UsageError(
            f"expected an experiment of one point, got a grid of {', '.join(config.sweep)}; use"
            f" `ulskip sweep {' '.join(overrides)}`"
        )
    return config


def compose_prompts(overrides: Sequence[str]) -> Config:
    """Build the checked configuration of `ulskip generate`; see `compose`. Unless a task is named,
    the bundled translator gets the prompts of its task, and other models get the prompts as they
    are or in their chat template.
    """
    config = compose(overrides, "generate")  # first, because the model decides below
    given_keys = {word.lstrip("+").partition("=")[0] for word in overrides}
    jsonl_keys = {f"task.{key}" for key in _preset_class("task", "jsonl").model_fields}
    task_keys = {key for key in given_keys if key.startswith("task.")}
    # A key that only the default task has, such as task.pair, names that task.
    names_task = given_keys & {"task", "experiment"} or task_keys - jsonl_keys
    if names_task or config.model.source == "bundled":
        return config
    return compose(["task=jsonl", *overrides], "generate")


def compose_unvalidated(overrides: Sequence[str], command: str) -> Config:
    """Build the configuration of a command, which may be a grid of several points."""
    command = command.partition(" ")[0]  # all formats of export read the same keys
    config: Config = _composed(command, overrides)
    if command == "bench":  # its answers are as long as its timed sequences, whatever the task
        config = config.replace(max_new_tokens=config.speed.new_tokens)
    return config


def compose_training(overrides: Sequence[str]) -> TrainingConfig:
    """Build the checked configuration of a training run; see `compose`."""
    config: TrainingConfig = _composed("train", overrides)
    output = config.output.replace("{model}", config.model.name)
    return config.replace(output=output.replace("{strategy}", config.strategy.name))


def compose_tuning(overrides: Sequence[str]) -> TuneConfig:
    """Build the checked configuration of `ulskip tune`; see `compose`."""
    return cast(TuneConfig, compose(overrides, "tune"))


def decoding_of(values: Mapping[str, object]) -> DecodingConfig:
    """Build the decoding configuration of `ulskip.generate`, which is greedy but for the keys in
    `values`; raise UsageError for an invalid key or value, and for drafts, which that function does
    not make.
    """
    refused = {"name", "draft", "draft_tokens"} & values.keys()
    if refused:
        raise UsageError(f"generate does not support {min(refused)}; use evaluate")
    return parse(DecodingConfig, values)


def preset(group: str, name: str, options: Mapping[str, object] | None = None) -> Any:
    """Return a choice of a group in CHOICES as an object, with some options changed; raise
    UsageError for an unknown choice or option. The class is always that of the preset.
    """
    chosen = read_choice(group, name)
    return make_choice({**chosen, **(options or {}), "_target_": chosen["_target_"]}, group)


def model_named(name: str) -> ModelConfig:
    """Return the configuration of a model that `ulskip config model` lists, or of one in a folder
    or on the hub.
    """
    if name in group_choices("model"):
        return parse(ModelConfig, read_choice("model", name), "model.")
    return parse(ModelConfig, {**read_choice("model", "hf"), "path": name}, "model.")


def stored_choice(group: str, values: Mapping[str, object]) -> Any:
    """Return the choice of a row, which stores its name and the options that differ from the
    defaults of the class in its preset; raise UsageError if the class or an option is not known.
    """
    name = str(values.get("name"))
    if "_target_" in values and not _user_dirs:  # rows store only the classes of users
        raise UsageError(f"{group}={name} is not a class of ulskip; name its --config-dir")
    options = {key: value for key, value in values.items() if key != "_target_"}
    return parse(_preset_class(group, name), options, f"{group}.")


@functools.cache
def _preset_class(group: str, name: str) -> type[Choice]:
    return choice_class(read_choice(group, name), group)


class StoredConfig(Config):
    """The configuration of a row: the values that its command used; the others are defaults.

    It keeps the keys that this installation does not know, and all values of a choice whose class
    it does not know, so that no two settings are taken for one.
    """

    model_config = ConfigDict(extra="allow")

    @classmethod
    def read(cls, values: Mapping[str, object]) -> "StoredConfig":
        """Return the configuration in a row; raise UsageError if a known key has an invalid
        value. A choice that the row does not store, because its command used none, is an unknown
        one.
        """
        nodes = {**{group: {} for group in CHOICES}, **values}
        return parse(cls, {key: _read_section(key, node) for key, node in nodes.items()}, "config.")

    @classmethod
    def of(cls, config: Config, command: str = "run") -> "StoredConfig":
        """Return what a row of a command stores of a configuration."""
        return cls.read(config.recorded(command))

    def uses(self, key: str, command: str) -> bool:
        """Return True also for keys that this installation does not know, so that they stay in
        the row.
        """
        return key.partition(".")[0] in (self.model_extra or ()) or super().uses(key, command)


def _read_section(key: str, node: object) -> object:
    """Return the value `node` of a key in a row: of a section an object, which keeps also values
    that this installation does not know, and of other keys `node` itself.
    """
    field, is_choice = Config.model_fields.get(key), key in CHOICES
    kind = options_in(field.annotation) if field else None
    if is_choice and not isinstance(node, dict):
        raise UsageError(f"expected keys under config.{key}, got {str(node)[:80]}")
    if kind is None or not isinstance(node, dict):
        return node
    try:
        return stored_choice(key, node) if is_choice else parse(kind, node, f"config.{key}.")
    except UnknownKey:  # the class is known, but not all of its keys
        kind = _preset_class(key, str(node.get("name"))) if is_choice else kind
    except UsageError:  # of a choice: `kind` stays the base class, such as Strategy
        if not is_choice:
            raise
    return parse(_keeping_all(kind), node, f"config.{key}.")


@functools.cache
def _keeping_all(known_class: type[BaseModel]) -> type[BaseModel]:
    """Return a subclass that keeps values that the class does not declare, and is not abstract."""

    class Unknown(known_class):  # type: ignore[misc, valid-type]
        model_config = ConfigDict(extra="allow")
        is_known: ClassVar[bool] = False

    Unknown.__abstractmethods__ = frozenset()  # it is read and compared, but never run
    return Unknown


def make_choice(node: Mapping[str, object], group: str) -> Choice:
    """Return the object that the values of a group describe."""
    values = {key: value for key, value in node.items() if key != "_target_"}
    return parse(choice_class(node, group), values, f"{group}.")


def changed_choice(choice: ChoiceT, changes: Mapping[str, object], prefix: str) -> ChoiceT:
    """Return a choice with some options changed and checked; raise UsageError, with `prefix` before
    the key, for a value that does not fit.
    """
    return parse(type(choice), {**dict(choice), **changes}, prefix)


def baseline_config(config: Config) -> Config:
    """Return the configuration of the baseline: the same experiment with all layers and no drafts.
    Keys that matter only to skipping get one value, so that the points of a sweep share a baseline.
    """
    return config.replace(
        strategy=preset("strategy", "full"),
        correction=preset("correction", "none"),
        engine=engine_named(config.baseline_engine) if config.baseline_engine else config.engine,
        decoding=config.decoding.without_drafts(),
        ratio=1.0,
        prompt_layers="all",
        baseline=True,
        baseline_engine=None,
    )


def to_yaml(config: Shared) -> str:
    """Return the configuration as YAML, in the form that results folders store."""
    return yaml.safe_dump(config.resolved(), sort_keys=False, allow_unicode=True)


# Files

_user_dirs: list[Path] = []  # at most one, of --config-dir


def config_dir() -> Path:
    """Return the folder of the shipped configs: inside an installed wheel, or beside the package in
    a checkout.
    """
    inside = Path(__file__).parents[1] / "configs"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "configs"


def group_choices(group: str) -> dict[str, Path]:
    """Return the YAML files of a config group by name: shipped files, those of plug-ins, and those
    in the user's folder. The group "" has the primary files.
    """
    folders = [config_dir(), *plugin_config_dirs(), *_user_dirs]
    return {
        path.stem: path for folder in folders for path in sorted((folder / group).glob("*.yaml"))
    }


def use_config_dir(folder: Path | None) -> None:
    """Find choices also in a user's folder from now on, or only those of ulskip and plug-ins; raise
    UsageError if a file has the name of a shipped one, because rows and other users know a choice
    by its name.
    """
    _preset_class.cache_clear()
    _user_dirs.clear()
    if folder is None:
        return
    if not folder.is_dir():
        raise UsageError(f"expected --config-dir to be a folder, got {folder}")
    for file in sorted(folder.glob("*/*.yaml")):
        shipped = config_dir() / file.relative_to(folder)
        # The user's folder may be that of the shipped files itself.
        if shipped.is_file() and not shipped.samefile(file):
            raise UsageError(
                f"{file}: {file.parent.name}={file.stem} is already defined by {shipped};"
                " rename your file, and give its key `name` the same new name"
            )
    _user_dirs.append(folder)


def read_choice(group: str, choice: str) -> Table:
    """Read the values in the YAML file of a choice, merged over its bases. Bases are choices of the
    same group that its `defaults` name. Raise UsageError if the group is one of CHOICES and the
    file does not name a class.
    """
    values = _merged(*_with_bases(group, choice))
    for key in ("defaults", "description"):
        values.pop(key, None)
    missing = [key for key in ("_target_", "name") if key not in values]
    if group in CHOICES and missing:
        file = group_choices(group)[choice]
        raise UsageError(f"expected the key {missing[0]} in {file}, got none; add it")
    return values


def description(group: str, choice: str) -> str:
    """Return the description in the YAML file of a choice, or in its bases."""
    return str(_merged(*_with_bases(group, choice)).get("description", ""))


def implied_choices(group: str, choice: str) -> dict[str, str]:
    """Return the choices of other groups, by group, that a choice selects, such as the model of
    `task=cnn_dm`.
    """
    # An entry is {group: name}, which Hydra also writes as {override /group@package: name}. Null
    # selects no file.
    return {
        key.removeprefix("override /").partition("@")[0]: str(name)
        for values in _with_bases(group, choice)
        for entry in values.get("defaults", ())
        if isinstance(entry, dict)
        for key, name in entry.items()
        if name
    }


def choice_class(node: Mapping[str, object], group: str) -> type[Choice]:
    """Import the class that a preset names in `_target_`; raise UsageError if the group has no such
    class.

    Only YAML files name classes, because the import of a class runs its module.
    """
    target, what = str(node.get("_target_")), f"{group}={node.get('name')}"
    try:
        imported = pkgutil.resolve_name(target)
    except Exception as error:  # the module is the user's own and may fail in any way
        raise UsageError(
            f"{what}: cannot import {target}, which _target_ names"
            f" ({type(error).__name__}: {reason(error)})"
        ) from None
    base = CHOICES[group]
    if not isinstance(imported, type) or not issubclass(imported, base):
        raise UsageError(
            f"{what}: expected _target_ to name a subclass of {base.__module__}.{base.__name__},"
            f" got {target}"
        )
    return imported


def _with_bases(group: str, choice: str, inside: tuple[str, ...] = ()) -> Iterator[Table]:
    """Yield the values of a file after those of the files that it is based on. `inside` has the
    choices that led to this one by their bases, for errors and to find cycles.
    """
    files = group_choices(group)
    file = files[require_choice(group if not inside else f"{group} in defaults", choice, files)]
    if choice in inside:
        raise UsageError(
            f"expected defaults without a cycle in {file}, got {' -> '.join([*inside, choice])}"
        )
    values = read_mapping(file)
    defaults, name = values.get("defaults", []), values.get("name", "")
    if not isinstance(defaults, list) or not isinstance(name, str):
        raise UsageError(f"expected a list as defaults and a text as name in {file}")
    if wrong := [entry for entry in defaults if not isinstance(entry, str | dict)]:
        raise UsageError(f"expected names of choices as defaults in {file}, got {wrong[0]}")
    for entry in defaults:
        if isinstance(entry, str) and entry != "_self_":  # Hydra's word for the file itself
            yield from _with_bases(group, entry, (*inside, choice))
    yield values


def read_mapping(file: Path) -> Table:
    """Read the keys of a YAML file; raise UsageError with the line if the file is unreadable or is
    not a mapping.
    """
    try:
        return _read(file, file.stat().st_mtime_ns)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        problem = str(error.problem)
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        line, problem = "", reason(error, True)
    raise UsageError(
        f"expected lines of the form `key: value` in {file}{line}, got an error: {problem}"
    )


@functools.lru_cache(maxsize=256)
def _read(file: Path, changed: int) -> Table:
    """Read a YAML file, and again only if the time `changed` is another; callers must not change
    the values.
    """
    values = yaml.load(file.read_text("utf-8"), _Loader)
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ValueError(str(values)[:80])
    return values


def _nested(key: str, value: object) -> Table:
    """Return a value under its dotted key, as nested mappings."""
    first, _, rest = key.partition(".")
    return {first: _nested(rest, value) if rest else value}


def _merged(*layers: Mapping[str, object]) -> Table:
    """Merge nested mappings into a new one; the values of later ones win."""
    merged: Table = {}
    for layer in layers:
        for key, value in layer.items():
            old = merged.get(key)
            if isinstance(old, dict) and isinstance(value, dict):
                value = _merged(old, value)
            merged[key] = value
    return merged


# Overrides


def parse_overrides(overrides: Sequence[str]) -> "list[Override]":
    """Parse `key=value` overrides with Hydra's parser; in a sweep, a key can list values.

    A value that Hydra's grammar refuses is read as a text, and so is the path of an existing file
    with a comma, which would be a list.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser, parsed = OverridesParser.create(), []
    for text in overrides:
        key, equals, value = text.partition("=")
        is_path = "," in value and is_existing(value)
        forms = [text, f"{key}={quoted(value)}"] if equals else [text]
        override = None  # of the first form that Hydra's grammar allows
        for form in forms[is_path:]:
            with contextlib.suppress(HydraException):
                override = override or parser.parse_override(form)
        is_typo = not key or value.startswith("=")
        # Hydra's grammar also has `~key`, which deletes, and `key@package=value`.
        if override is None or override.is_delete() or override.package or is_typo:
            meant = re.sub("==+|:", "=", text[:80], count=1)
            hint = "an example is ratio=2" if meant == text[:80] else f"did you mean {meant}?"
            raise UsageError(f"expected key=value without spaces, got '{text[:80]}'; {hint}")
        parsed.append(override)
    return parsed


def quoted(text: str) -> str:
    r"""Write a text in quotes in the grammar of overrides.

    >>> print(quoted('say "a\\"'))
    "say \"a\\\""
    """
    # A backslash is doubled only before a quote, also the closing one; elsewhere it is itself.
    inner = re.sub(r'(\\*)"', r'\1\1\\"', text)
    return '"' + re.sub(r"(\\+)$", r"\1\1", inner) + '"'


def is_text(key: str) -> bool:
    r"""Return True for keys in whose texts \n, \t and \\ stand for a line break, a tab and a
    backslash.
    """
    return f"{key}.".startswith(_TEXT_KEYS)


def escaped(value: object) -> object:
    """Write the line breaks, tabs and backslashes in the texts of a value as two characters."""
    codes = {ord(character): code for code, character in _ESCAPES.items()}
    return change_texts(value, lambda text: text.translate(codes))


def _unescaped(value: object) -> object:
    return change_texts(
        value, lambda text: re.sub(r"\\[nt\\]", lambda match: _ESCAPES[match[0]], text)
    )


def primary_of(command: str) -> str:
    """Return the name of the primary configuration of a command, a key of PRIMARY."""
    return command if command in PRIMARY else "config"


def _composed(command: str, overrides: Sequence[str]) -> Any:
    """Return the configuration that overrides describe, of the class that PRIMARY has for the
    command; refuse keys that the command does not read.
    """
    primary = primary_of(command)
    kind, groups = PRIMARY[primary]
    parsed = parse_overrides(overrides)
    keys = [override.key_or_group for override in parsed]
    try:
        config = parse(kind, _values(primary, parsed))
    except UnknownKey as error:
        known = [key for key in keys if kind.readers(key)]
        _refuse_unread(kind, known, command)  # first, because the command of a known key says more
        raise _explained(error, kind, groups, keys, command) from None
    _refuse_unread(kind, keys, command)
    return config


def _explained(
    error: UnknownKey, kind: type[Shared], groups: Sequence[str], keys: Sequence[str], command: str
) -> UsageError:
    """Return the error for an unknown key with a better hint: which choice of its group or which
    section has it. Raise it if another command has the key. `keys` are those of the overrides.
    """
    group, _, name = error.key.partition(".")
    # The key of an override can be longer: of an unknown section, only the section is refused.
    key = next((key for key in keys if f"{key}.".startswith(f"{error.key}.")), None)
    if key is None:  # a key of a file
        return UsageError(str(error))
    for other, _ in PRIMARY.values():
        # Of ratio=2, a training says below that its key is train.ratios.
        if other is not kind and field_of(other, key) and kind is not TrainingConfig:
            _refuse_unread(other, [key], command)
    owners = [
        choice
        for choice in (group_choices(group) if group in CHOICES.keys() & set(groups) else ())
        if name in _preset_class(group, choice).model_fields
    ]
    # A key that is given without its section, or in the singular, as num_beams or ratio.
    inside = [
        f"{section}.{option}"
        for section, field in kind.model_fields.items()
        for option in getattr(options_in(field.annotation), "model_fields", ())
        if option in (key, f"{key}s")
    ]
    if owners:
        return UnknownKey(f"{key} requires {group}={' or '.join(owners)}", key)
    if inside:
        return UnknownKey(f"unknown key '{key}'; did you mean '{inside[0]}'?", key)
    return UnknownKey(str(error), key)


def _refuse_unread(kind: type[Shared], keys: Sequence[str], command: str) -> None:
    """Raise UsageError for a key that the command does not read."""
    for key in keys:
        readers = kind.readers(key)
        if command not in readers and key != "experiment":  # a group without a field
            others = ", ".join(readers) or "no command"
            raise UsageError(
                f"`ulskip {command}` does not read {key}, which is a key of {others}; leave it out"
            )


def _check_override(override: "Override", primary: str) -> None:
    """Raise UsageError if an override lists values, or sets what the name of a choice sets. Unknown
    keys get their error later.
    """
    kind, groups = PRIMARY[primary]
    group, _, name = override.key_or_group.partition(".")
    if override.is_sweep_override() and group in {*groups, *kind.model_fields}:
        line, field = str(override.input_line), Config.model_fields.get(group)
        # A grid varies keys that change results; trainings and tunings have no grid.
        is_swept = primary == "config" and field and use_of(field).changes_results
        grid = f"for a grid, use `ulskip sweep {line}`, " if is_swept else ""
        hint = f"for a list, write {line.replace('=', '=[', 1)}], "
        if field and field.annotation is float:
            meant = re.sub(r"=(\d+),(\d+)$", r"=\1.\2", line)  # a decimal comma, as in ratio=2,5
            hint = f"did you mean {meant}? " * (meant != line)
        raise UsageError(
            f"expected one value, got '{line}'; {hint}{grid}else run the command once for each"
            " value"
        )
    if group in groups and name in ("_target_", "name"):
        raise UsageError(
            f"{group}.{name} cannot be set, because {group}=NAME sets it; choose another"
            f" {group}=NAME"
        )


def _values(primary: str, overrides: "Sequence[Override]") -> Table:
    """Return the values of the chosen files and of the overrides, with the choices of CHOICES as
    objects.
    """
    groups = PRIMARY[primary][1]
    for override in overrides:
        _check_override(override, primary)
    given = dict[str, str]()  # choices by group
    changed = dict[str, object]()  # values by dotted key
    for override in overrides:
        key, value = override.key_or_group, override.value()
        if key not in groups:
            changed[key] = _unescaped(value) if is_text(key) else value
        elif (key, value) != ("experiment", None):  # null chooses none, as by default
            advice = f"`ulskip config {key}` describes them{_INSTEAD.get(key, '')}"
            given[key] = require_choice(key, str(value), group_choices(key), advice)
    values = read_files(primary, given)
    if "model.path" in changed and values["model"]["source"] != "random":  # whose path is a shape
        path = changed["model.path"]
        if "model" not in given:  # a path alone is a checkpoint of one's own
            values = read_files(primary, {**given, "model": "hf"})
        # The preset of a bundled model has a path of its own.
        elif values["model"]["source"] != "hf" and path != values["model"]["path"]:
            raise UsageError(
                f"expected model={given['model']} or model.path, got model.path={path} too; leave"
                " out one of them"
            )
    values = _merged(values, *(_nested(*change) for change in changed.items()))
    for group in values.keys() & set(groups):
        if not isinstance(values[group], dict):
            raise UsageError(
                f"expected keys under {group} in the experiment, got {str(values[group])[:80]}; to"
                f" choose a file write `- override /{group}: NAME` in its defaults"
            )
        if group in CHOICES:
            values[group] = make_choice(values[group], group)
    return values


def read_files(primary: str, given: Mapping[str, str]) -> Table:
    """Return the values of the primary file, of the `given` choices and of those that they imply,
    with interpolations such as `${seed}` resolved.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    groups = PRIMARY[primary][1]
    chosen = dict(given)  # choices by group, like `given`
    unread = sorted(given, key=groups.index)
    while unread:
        group = unread.pop()  # from the end: what the experiment implies wins over other files
        for other, name in implied_choices(group, chosen[group]).items():
            require_choice(f"config group in defaults of {group}={chosen[group]}:", other, groups)
            if other not in chosen:
                chosen[other] = name
                unread.append(other)
    usual = implied_choices("", primary)  # the default choices
    chosen = {**usual, **chosen}
    nodes = {group: read_choice(group, name) for group, name in chosen.items()}
    experiment = dict(nodes.pop("experiment", {}))
    if experiment:
        usual |= implied_choices("experiment", chosen["experiment"])
        # Its keys of a group do not apply to another choice of that group, which the user gave.
        for group in given.keys() & usual.keys():
            if given[group] != usual[group]:
                experiment.pop(group, None)
    merged = _merged(nodes, read_choice("", primary), experiment)
    try:
        return cast(Table, OmegaConf.to_container(OmegaConf.create(merged), resolve=True))
    except OmegaConfBaseException as error:
        raise UsageError(reason(error)) from None
