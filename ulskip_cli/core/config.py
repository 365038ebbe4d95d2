"""Configurations: Hydra composes YAML files and overrides into one frozen, checked object.

`configs/<primary>.yaml` selects a file of each group. Files state what differs from the defaults in
the classes. The command line wins over an experiment, an experiment over other files.
"""

import contextlib
import copy
import functools
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast

from pydantic import BaseModel, ConfigDict
from pydantic_core import to_jsonable_python

from ulskip_cli.core.config_schema import (
    BaseConfig,
    Config,
    DecodingConfig,
    ModelConfig,
    TrainingConfig,
    TuneConfig,
)
from ulskip_cli.core.engines import engine_named, plugin_config_dirs
from ulskip_cli.core.errors import UnknownKey, UsageError, reason, require_choice, unknown
from ulskip_cli.core.files import JsonObject, change_texts, is_existing
from ulskip_cli.core.options import (
    Choice,
    has_field,
    options_in,
    parse,
    use_of,
)

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override
    from omegaconf import DictConfig

GROUPS = ("model", "task", "strategy", "correction", "decoding", "engine", "launcher", "experiment")
TRAINING_GROUPS = ("model", "task", "strategy", "train")
CHOICES: dict[str, type[Choice]] = {
    name: base
    for name, field in Config.model_fields.items()
    if (base := options_in(field.annotation)) and issubclass(base, Choice)
}  # base classes of the groups whose presets name a class
SEARCH_PATH = "hydra.searchpath"
GLOBAL = "`# @package _global_`"  # says that the keys of a file are those of no group
_INSTEAD = {
    "model": "; for another model give model.path=<hub id or folder>",
    "task": "; for your own examples give task=jsonl task.file=<file>",
}
# each with a dot at its end, so that task.prompt_key does not begin with task.prompt
_TEXT_KEYS = ("task.prompt.", "task.response.", "task.templates.", "decoding.stop.")
_ESCAPES = {r"\n": "\n", r"\t": "\t", r"\\": "\\"}

PRIMARY: dict[str, tuple[type[BaseConfig], tuple[str, ...]]] = {
    "config": (Config, GROUPS),
    "tune": (TuneConfig, GROUPS),
    "train": (TrainingConfig, TRAINING_GROUPS),
}  # of configs/<primary>.yaml

ChoiceT = TypeVar("ChoiceT", bound=Choice)


def compose(overrides: Sequence[str], command: str = "run") -> Config:
    """Build the configuration of a command, such as `run` or `export --format hf`.

    Raises UsageError for an invalid key or value, a key that the command does not read, or a grid
    where one point is expected. `make_plan` refuses values that exclude each other.
    """
    config = compose_point_or_grid(overrides, command)
    # An experiment file can list the values of a grid under the key `sweep`.
    if config.sweep and command not in ("sweep", "bench"):
        raise UsageError(
            f"expected an experiment of one point, got a grid of {', '.join(config.sweep)}; use"
            f" `ulskip sweep {' '.join(overrides)}`"
        )
    return config


def compose_prompts(overrides: Sequence[str]) -> Config:
    """Build the configuration of `ulskip generate`; see `compose`. Unless a task is named, the
    bundled translator gets the prompts of its task, other models the prompts as they are or in
    their chat template.
    """
    config = compose(overrides, "generate")  # first, because the model decides below
    given_keys = {word.lstrip("+").partition("=")[0] for word in overrides}
    jsonl_keys = {f"task.{key}" for key in preset_class("task", "jsonl").model_fields}
    # A key that only the default task has, such as task.pair, names that task.
    names_task = any(
        key in ("task", "experiment") or (key.startswith("task.") and key not in jsonl_keys)
        for key in given_keys
    )
    if names_task or config.model.source == "bundled":
        return config
    return compose(["task=jsonl", *overrides], "generate")


def compose_point_or_grid(overrides: Sequence[str], command: str) -> Config:
    """Build the configuration of a command, also of a grid."""
    command = command.partition(" ")[0]  # all formats of export read the same keys
    config: Config = _compose_config(command, overrides)
    if command == "bench":  # its answers are as long as its timed sequences, whatever the task
        config = config.replace(max_new_tokens=config.speed.new_tokens)
    return config


def compose_training(overrides: Sequence[str]) -> TrainingConfig:
    """Build the configuration of a training; see `compose`."""
    config: TrainingConfig = _compose_config("train", overrides)
    output = config.output.replace("{model}", config.model.name)
    return config.replace(output=output.replace("{strategy}", config.strategy.name))


def compose_tuning(overrides: Sequence[str]) -> TuneConfig:
    """Build the configuration of `ulskip tune`; see `compose`."""
    return cast(TuneConfig, compose(overrides, "tune"))


def decoding_of(values: Mapping[str, object]) -> DecodingConfig:
    """Build the decoding of `ulskip.generate`, greedy but for `values`; raise UsageError for an
    invalid key or value, and for drafts, which that function does not make.
    """
    refused = {"name", "draft", "draft_tokens"} & values.keys()
    if refused:
        raise UsageError(f"generate does not support {min(refused)}; use evaluate")
    return parse(DecodingConfig, values)


def preset(group: str, name: str, options: Mapping[str, object] | None = None) -> Any:
    """Return a choice of a group in CHOICES with some options changed; raise UsageError for an
    unknown choice or option. The class is always that of the preset.
    """
    chosen = read_choice(group, name)
    changed = {**chosen, **(options or {}), "_target_": chosen["_target_"]}
    return CHOICES[group].chosen(changed, group)


def model_named(name: str) -> ModelConfig:
    """Return a model that `ulskip config model` lists, or one in a folder or on the hub."""
    if name in group_choices("model"):
        return parse(ModelConfig, read_choice("model", name), "model.")
    return parse(ModelConfig, {**read_choice("model", "hf"), "path": name}, "model.")


def stored_choice(group: str, values: Mapping[str, object]) -> Any:
    """Return the choice of a row, which stores its name and the options that are not defaults;
    raise UsageError if the class or an option is not known.
    """
    name = str(values.get("name"))
    if "_target_" in values and not _user_dirs:  # rows store only the classes of users
        raise UsageError(f"{group}={name} is not a class of ulskip; name its --config-dir")
    options = {key: value for key, value in values.items() if key != "_target_"}
    return parse(preset_class(group, name), options, f"{group}.")


@functools.cache
def preset_class(group: str, name: str) -> type[Choice]:
    """Return the class that a preset of a group in CHOICES names."""
    files = group_choices(group)
    text = files[require_choice(group, name, files)].read_text("utf-8", errors="replace")
    # Most files state the class themselves; then reports need no Hydra, whose import takes 0.2 s.
    stated = re.search(r"^_target_: ([\w.]+)$", text, re.MULTILINE)
    node = {"_target_": stated[1], "name": name} if stated else read_choice(group, name)
    return CHOICES[group].imported(node, group)


class StoredConfig(Config):
    """The configuration of a row: the values that its command used; the others are defaults.

    It keeps unknown keys, and all values of a choice of an unknown class, so that no two settings
    are taken for one.
    """

    model_config = ConfigDict(extra="allow")

    @classmethod
    def read(cls, values: Mapping[str, object]) -> "StoredConfig":
        """Read a row; raise UsageError for an invalid value. A choice that the row lacks, because
        its command used none, is an unknown one.
        """
        nodes = {**{group: {} for group in CHOICES}, **values}
        return parse(cls, {key: _read_section(key, node) for key, node in nodes.items()}, "config.")

    @classmethod
    def of(cls, config: Config, command: str = "run") -> "StoredConfig":
        """Return what a row of a command stores."""
        return cls.read(config.recorded(command))

    def uses(self, key: str, command: str) -> bool:
        """Return True also for unknown keys, so that they stay in the row."""
        return key.partition(".")[0] in (self.model_extra or ()) or super().uses(key, command)


def _read_section(key: str, node: object) -> object:
    """Return the value of a top-level key of a row: an object for a choice or a section, which
    keeps unknown keys, or else `node` itself.
    """
    if key in CHOICES:
        return _read_stored_choice(key, node)
    field = Config.model_fields.get(key)
    section = options_in(field.annotation) if field else None
    if section is None or not isinstance(node, dict):
        return node
    try:
        return parse(section, node, f"config.{key}.")
    except UnknownKey:
        return parse(_keeping_all(section), node, f"config.{key}.")


def _read_stored_choice(group: str, node: object) -> object:
    """Return the choice of a group that a row stores as `node`."""
    if not isinstance(node, dict):
        raise UsageError(f"expected keys under config.{group}, got {str(node)[:80]}")
    try:
        return stored_choice(group, node)
    except UnknownKey:  # the class is known, but not all of its keys
        known_class = preset_class(group, str(node.get("name")))
    except UsageError:  # only the base class is known, such as Strategy
        known_class = CHOICES[group]
    return parse(_keeping_all(known_class), node, f"config.{group}.")


@functools.cache
def _keeping_all(known_class: type[BaseModel]) -> type[BaseModel]:
    """Return a subclass that keeps values that the class does not declare, and is not abstract."""

    class Unknown(known_class):  # type: ignore[misc, valid-type]
        model_config = ConfigDict(extra="allow")
        is_known: ClassVar[bool] = False

    Unknown.__abstractmethods__ = frozenset()  # it is read and compared, but never run
    return Unknown


def changed_choice(choice: ChoiceT, changes: Mapping[str, object], prefix: str) -> ChoiceT:
    """Return a choice with checked changes; an error shows `prefix` before the key."""
    return parse(type(choice), {**dict(choice), **changes}, prefix)


def baseline_config(config: Config) -> Config:
    """Return the same experiment with all layers and no drafts. Keys that matter only to skipping
    get one value, so that the points of a sweep share a baseline.
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


def to_yaml(config: BaseConfig) -> str:
    """Return the YAML that results folders store."""
    import yaml

    return yaml.safe_dump(config.resolved(), sort_keys=False, allow_unicode=True)


# Files

_user_dirs: list[Path] = []  # of --config-dir and hydra.searchpath


@dataclass(frozen=True)
class ComposedFiles:
    """Composed values, with interpolations as written, and the choice of each group."""

    config: "DictConfig"
    choices: Mapping[str, str | None]

    def values(self) -> JsonObject:
        """Return the values as nested dictionaries."""
        from omegaconf import OmegaConf

        return cast(JsonObject, OmegaConf.to_container(self.config))


def config_dir() -> Path:
    """Return the folder of the shipped configs: inside an installed wheel, or beside the package in
    a checkout.
    """
    inside = Path(__file__).parents[1] / "configs"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "configs"


def _folders() -> list[Path]:
    return [config_dir(), *plugin_config_dirs(), *_user_dirs]


def group_choices(group: str) -> dict[str, Path]:
    """Return the YAML files of a group by name: shipped ones, and those of plug-ins and users."""
    files = (path for folder in _folders() for path in sorted((folder / group).glob("*.yaml")))
    return {path.stem: path for path in files}


def use_config_dir(folder: Path | None) -> None:
    """Find choices also in a user's folder, or in none from now on; raise UsageError as
    `_set_user_dirs` does.
    """
    if folder is not None or _user_dirs:
        _set_user_dirs([] if folder is None else [folder], "--config-dir")


def _set_user_dirs(folders: Sequence[Path], option: str) -> None:
    """Replace the folders of users, which `option` gave. Raise UsageError if a file has the name of
    another choice, because rows and other users know a choice by its name.
    """
    preset_class.cache_clear()
    compose_files.cache_clear()
    _user_dirs.clear()
    for folder in folders:
        if not folder.is_dir():
            raise UsageError(f"expected {option} to be a folder, got {folder}")
        for file in sorted(folder.glob("*/*.yaml")):
            defined = group_choices(file.parent.name).get(file.stem, file)
            if not defined.samefile(file):  # the folder may be that of the shipped files itself
                raise UsageError(
                    f"{file}: {file.parent.name}={file.stem} is already defined by {defined};"
                    " rename your file, and give its key `name` the same new name"
                )
        _user_dirs.append(folder)


@functools.lru_cache(maxsize=256)
def compose_files(name: str, *edits: str, **given: str) -> ComposedFiles:
    """Compose a file and its defaults as `hydra.compose` does, but without Hydra's own
    configuration, which takes longer than ours. Raise UsageError if a file is damaged.

    `name` is a primary file, or a choice such as `strategy/unified` for its values alone. `given`
    are choices that are not the defaults, and `edits` other overrides of files, such as `~KEY`.
    """
    words = [f"{group}={quoted(choice)}" for group, choice in given.items()]
    try:
        with warnings.catch_warnings(action="ignore"):  # of a choice without `_self_`
            return _compose_by_hydra(name, [*words, *edits])
    except Exception as error:  # of a user's file, which may be damaged in any way
        chosen = [f"{group}/{choice}" for group, choice in given.items()] or [name]
        raise _file_error(error, chosen) from None


def _compose_by_hydra(name: str, words: Sequence[str]) -> ComposedFiles:
    """Compose a file with overrides of choices and files; any error of Hydra can be raised."""
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra._internal.defaults_list import Overrides, _create_defaults_list
    from hydra._internal.utils import create_config_search_path

    path = create_config_search_path(str(config_dir()))
    for folder in _folders()[1:]:  # of plug-ins and users
        path.prepend(SEARCH_PATH, str(folder), "schema")  # before Hydra's own entry, the last one
    loader = ConfigLoaderImpl(path)
    parsed, files = loader._parse_overrides_and_create_caching_repo(name, list(words))
    overrides = Overrides(files, parsed)
    defaults, _ = _create_defaults_list(files, name, overrides, False, skip_missing=False)
    if name in PRIMARY:  # a choice alone may select others in groups that are not there
        overrides.ensure_overrides_used()
        overrides.ensure_deletions_used()
    config = loader._compose_config_from_defaults_list(defaults, files)
    loader._apply_overrides_to_config(overrides.config_overrides, config)
    return ComposedFiles(config, overrides.known_choices)


def _file_error(error: Exception, chosen: Sequence[str]) -> UsageError:
    """Return the line for an error of Hydra or its YAML loader in `chosen` files, e.g.
    `strategy/mine`.
    """
    import yaml
    from hydra.errors import MissingConfigException

    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        mark = error.problem_mark
        return UsageError(
            f"expected lines of the form `key: value` in {mark.name}, line {mark.line + 1}, got an"
            f" error: {error.problem}"
        )
    paths = [folder / f"{name}.yaml" for folder in _user_dirs for name in chosen]
    files = " or ".join(str(path) for path in paths if path.is_file()) or "the overrides"
    if isinstance(error, MissingConfigException):
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        return unknown(f"{group} in the defaults of {files}", name, group_choices(group))
    text = reason(error, True)
    if isinstance(error, RecursionError):
        text = "a file that is nested too deeply, or whose defaults lead to itself"
    if "Could not override" in text and _user_dirs:
        text += (
            "; to select a model write `override /model@_global_.model: NAME`, or in an experiment"
            f" {GLOBAL} as the first line, and `override /model: NAME`"
        )
    if "Could not delete" in text:
        text += " It has no value in the files that can be deleted; leave ~ out, or set it"
    return UsageError(f"expected {files} to be composed, got an error: {text}")


def read_choice(group: str, choice: str) -> JsonObject:
    """Return the values in the file of a choice and in its bases. Raise UsageError if a group of
    CHOICES gets no class.
    """
    require_choice(group, choice, group_choices(group))
    return _section_values(group, choice, compose_files(f"{group}/{choice}").values().get(group))


def description(group: str, choice: str) -> str:
    """Return the description of a choice, or of its bases."""
    require_choice(group, choice, group_choices(group))
    values = compose_files(f"{group}/{choice}").values()
    node = values.get(group, values)  # the keys of an experiment are in no group
    return str(node.get("description", "") if isinstance(node, dict) else "")


def _section_values(group: str, choice: str, node: object) -> JsonObject:
    """Return the values of a group without the description; raise UsageError if they are no keys,
    or name no class.
    """
    if not isinstance(node, dict):
        raise UsageError(
            f"expected keys under {group}, got {str(node)[:80]}; to choose a file write `- override"
            f" /{group}: NAME` in the defaults of the experiment"
        )
    for required in ("_target_", "name"):
        if group in CHOICES and required not in node:
            file = group_choices(group)[choice]
            raise UsageError(f"expected the key {required} in {file}, got none; add it")
    for key in node:
        if not isinstance(key, str):  # YAML reads 5 and true as other types
            file = group_choices(group)[choice]
            raise UsageError(f"expected texts as keys in {file}, got {key}; write '{key}'")
    return {key: value for key, value in node.items() if key != "description"}


# Overrides


def parse_overrides(overrides: Sequence[str]) -> "list[Override]":
    """Parse `key=value` overrides with Hydra's parser; in a sweep, a key can list values.

    A value that the grammar refuses is a text, and so is an existing path with a comma, which would
    be a list.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser, parsed = OverridesParser.create(), []
    for text in overrides:
        key, equals, value = text.partition("=")
        forms = [text]  # of which the first one that the grammar allows counts
        if equals:
            forms.append(f"{key}={quoted(value)}")
        if "," in value and is_existing(value):
            forms.remove(text)
        if not key or value.startswith("="):
            forms.clear()
        for form in forms:
            with contextlib.suppress(HydraException):
                parsed.append(parser.parse_override(form))
                break
        else:
            meant = re.sub("==+|:", "=", text[:80], count=1)
            hint = "an example is ratio=2" if meant == text[:80] else f"did you mean {meant}?"
            raise UsageError(f"expected key=value without spaces, got '{text[:80]}'; {hint}")
    return parsed


def quoted(text: str) -> str:
    r"""Quote a text in the grammar of overrides.

    >>> print(quoted('say "a\\"'))
    "say \"a\\\""
    """
    from hydra.core.override_parser.types import Quote, QuotedString

    return QuotedString(text, Quote.double).with_quotes()


def is_text(key: str) -> bool:
    r"""Return True for keys whose texts have escapes: \n, \t and \\."""
    return f"{key}.".startswith(_TEXT_KEYS)


def escaped(value: object) -> object:
    """Write line breaks, tabs and backslashes in texts as two characters."""
    codes = {ord(character): code for code, character in _ESCAPES.items()}
    return change_texts(value, lambda text: text.translate(codes))


def _unescaped(value: object) -> object:
    return change_texts(
        value, lambda text: re.sub(r"\\[nt\\]", lambda match: _ESCAPES[match[0]], text)
    )


def primary_of(command: str) -> str:
    """Return the key of PRIMARY for a command."""
    return command if command in PRIMARY else "config"


def _compose_config(command: str, overrides: Sequence[str]) -> Any:
    """Return the configuration of the command's class in PRIMARY; refuse keys that the command does
    not read.
    """
    primary = primary_of(command)
    config_class, _ = PRIMARY[primary]
    parsed = parse_overrides(overrides)
    keys = [word.key_or_group for word in parsed if word.key_or_group != SEARCH_PATH]
    try:
        config = parse(config_class, _compose_values(primary, parsed))
    except UnknownKey as error:
        known = [key for key in keys if config_class.readers(key)]
        # First, because the command of a known key says more.
        _refuse_unread(config_class, known, command)
        raise _with_hint(error, keys, command) from None
    _refuse_unread(config_class, keys, command)
    return config


def _with_hint(error: UnknownKey, keys: Sequence[str], command: str) -> UsageError:
    """Return the error for an unknown key with a hint: which choice of its group, which command or
    which section has it. `keys` are those of the overrides.
    """
    # The key of an override can be longer: of an unknown section, only the section is refused.
    key = next((key for key in keys if f"{key}.".startswith(f"{error.key}.")), None)
    if key is None:
        return UsageError(f"{error}; one of the chosen files has it")
    config_class, groups = PRIMARY[primary_of(command)]
    hinted: UsageError | None = _error_of_other_choice(error.key, key, groups)
    # Of ratio=2, a training says below that its key is train.ratios.
    if hinted is None and config_class is not TrainingConfig:
        hinted = _error_of_other_command(key, command)
    return hinted or _error_of_near_key(config_class, key) or UnknownKey(str(error), key)


def _error_of_other_choice(unknown: str, key: str, groups: Sequence[str]) -> UnknownKey | None:
    """Return the error for a key that other choices of its group have."""
    group, _, name = unknown.partition(".")
    if group not in CHOICES or group not in groups:
        return None
    choices = group_choices(group)
    owners = [choice for choice in choices if name in preset_class(group, choice).model_fields]
    return UnknownKey(f"{key} requires {group}={' or '.join(owners)}", key) if owners else None


def _error_of_other_command(key: str, command: str) -> UsageError | None:
    """Return the error for a key that only other commands read."""
    for config_class, _ in PRIMARY.values():
        if has_field(config_class, key) and (error := _unread_error(config_class, key, command)):
            return error
    return None


def _error_of_near_key(config_class: type[BaseConfig], key: str) -> UnknownKey | None:
    """Return the error for a key without its section, or in the singular, as num_beams or ratio."""
    for section, field in config_class.model_fields.items():
        options = options_in(field.annotation)
        for meant in (key, f"{key}s"):
            if options and meant in options.model_fields:
                hint = f"did you mean '{section}.{meant}'?"
                return UnknownKey(f"unknown key '{key}'; {hint}", key)
    return None


def _unread_error(config_class: type[BaseConfig], key: str, command: str) -> UsageError | None:
    """Return the error for a key that the command does not read; None if it reads the key."""
    readers = config_class.readers(key)
    if command in readers or key == "experiment":  # a group without a field
        return None
    others = ", ".join(readers) or "no command"
    return UsageError(
        f"`ulskip {command}` does not read {key}, which is a key of {others}; leave it out"
    )


def _refuse_unread(config_class: type[BaseConfig], keys: Sequence[str], command: str) -> None:
    """Raise UsageError for a key that the command does not read."""
    for key in keys:
        if error := _unread_error(config_class, key, command):
            raise error


def _check_override(override: "Override", primary: str) -> None:
    """Raise UsageError if an override lists values, or sets what the name of a choice sets."""
    config_class, groups = PRIMARY[primary]
    section, _, name = override.key_or_group.partition(".")
    if override.is_sweep_override() and (section in groups or section in config_class.model_fields):
        raise _list_error(str(override.input_line), section, primary)
    if section in groups and name in ("_target_", "name"):
        raise UsageError(
            f"{section}.{name} cannot be set, because {section}=NAME sets it; choose another"
            f" {section}=NAME"
        )


def _list_error(line: str, section: str, primary: str) -> UsageError:
    """Return the error for an override, `line`, that lists values without brackets; its key is
    `section` or inside it.
    """
    field = Config.model_fields.get(section)
    hint = f"for a list, write {line.replace('=', '=[', 1)}], "
    if field and field.annotation is float:
        meant = re.sub(r"=(\d+),(\d+)$", r"=\1.\2", line)  # a decimal comma, as in ratio=2,5
        hint = "" if meant == line else f"did you mean {meant}? "
    # A grid varies keys that change results; trainings and tunings have no grid.
    if primary == "config" and field and use_of(field).changes_results:
        hint += f"for a grid, use `ulskip sweep {line}`, "
    return UsageError(
        f"expected one value, got '{line}'; {hint}else run the command once for each value"
    )


@dataclass(frozen=True)
class _Overrides:
    """The overrides of a command, by what they do."""

    choices: Mapping[str, str]  # by group
    values: Mapping[str, object]  # by dotted key
    edits: Sequence[str]  # overrides of files that Hydra applies, such as ~KEY

    @classmethod
    def of(cls, primary: str, overrides: "Sequence[Override]") -> "_Overrides":
        """Check overrides and sort them; those of the search path take effect at once."""
        _, groups = PRIMARY[primary]
        choices, values, edits = dict[str, str](), dict[str, object](), list[str]()
        # The search path comes first, because it decides which choices there are.
        for override in sorted(overrides, key=lambda word: word.key_or_group != SEARCH_PATH):
            _check_override(override, primary)
            key = override.key_or_group
            value = None if override.is_sweep_override() else override.value()
            if key == SEARCH_PATH:
                _extend_search_path(value)
            elif override.is_delete() or override.package is not None:
                edits.append(str(override.input_line))
            elif key not in groups:
                values[key] = _unescaped(value) if is_text(key) else value
            elif (key, value) != ("experiment", None):  # null chooses none, as by default
                advice = f"`ulskip config {key}` describes them{_INSTEAD.get(key, '')}"
                choices[key] = require_choice(key, str(value), group_choices(key), advice)
        return cls(choices, values, edits)


def _compose_values(primary: str, overrides: "Sequence[Override]") -> JsonObject:
    """Return the values of the chosen files and of the overrides."""
    config_class, groups = PRIMARY[primary]
    asked = _Overrides.of(primary, overrides)
    files = compose_files(primary, *asked.edits, **asked.choices)
    if _names_own_checkpoint(asked, files):
        files = compose_files(primary, *asked.edits, **{**asked.choices, "model": "hf"})
    if "experiment" in files.config:
        file = group_choices("experiment")[str(files.choices["experiment"])]
        raise UsageError(f"expected {GLOBAL} as the first line of {file}, got another; add it")
    values = _with_overrides(files, asked.values, config_class)
    values.pop("description", None)  # of an experiment
    for group in groups:
        if group in values:
            values[group] = _section_values(group, str(files.choices.get(group)), values[group])
    return values


def _names_own_checkpoint(asked: _Overrides, files: ComposedFiles) -> bool:
    """Return True if an overridden path is the user's checkpoint, and not one of the files' model.
    Raise UsageError if an override chose a model with a path of its own.
    """
    from omegaconf import OmegaConf

    if "model.path" not in asked.values:
        return False
    path, chosen = asked.values["model.path"], asked.choices.get("model")
    source, own = (OmegaConf.select(files.config, f"model.{key}") for key in ("source", "path"))
    if chosen and source not in ("hf", "random") and path != own:
        raise UsageError(
            f"expected model={chosen} or model.path, got model.path={path} too; leave out one of"
            " them"
        )
    return chosen is None and source != "random"  # whose path is a shape


def _extend_search_path(value: object) -> None:
    """Add the folders of an override of hydra.searchpath; raise UsageError if they are none."""
    if not isinstance(value, list):
        got = str(value)[:80]
        raise UsageError(
            f"expected {SEARCH_PATH} to be a list of folders, written [DIR], got {got}"
        )
    folders = [Path(str(text).removeprefix("file://")) for text in value]
    new = [folder for folder in folders if folder not in _user_dirs]
    if new:
        _set_user_dirs([*_user_dirs, *new], SEARCH_PATH)


def _with_overrides(
    files: ComposedFiles, changed: Mapping[str, object], config_class: type[BaseConfig]
) -> JsonObject:
    """Return the values of files, some `changed` by dotted key, with interpolations resolved; these
    can name keys that only `config_class` has, with their defaults.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    config = copy.deepcopy(files.config)
    try:
        for key, value in changed.items():
            OmegaConf.update(config, key, value, force_add=True)
        return _interpolated(config, config_class)
    except (OmegaConfBaseException, ValueError) as error:
        problem, _, _ = str(error).partition("\n")
        raise UsageError(
            f"expected values, or ${{KEY}} for that of another key, got an error: {problem}; for"
            " the text itself write \\${KEY}"
        ) from None


def _interpolated(config: "DictConfig", config_class: type[BaseConfig]) -> JsonObject:
    """Replace `${KEY}` by the value of that key, or by its default in the class."""
    from omegaconf import OmegaConf
    from omegaconf.errors import InterpolationKeyError

    try:
        values = OmegaConf.to_container(config, resolve=True)
    except InterpolationKeyError:  # perhaps of a key that has its default
        defaults = {
            name: to_jsonable_python(field.get_default(call_default_factory=True))
            for name, field in config_class.model_fields.items()
            if not field.is_required()
        }
        values = OmegaConf.to_container(OmegaConf.merge(defaults, config), resolve=True)
    return cast(JsonObject, values)
