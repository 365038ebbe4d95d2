"""Hydra composition: overrides and the YAML files of the config groups become plain values, for
`config.py`.

Presets state only what differs from the defaults in the classes. So the values are merged over a
tree of all defaults, whose keys are the keys that an override may name.
"""

import functools
import pkgutil
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic_core import PydanticUndefined, to_jsonable_python

from ulskip_cli.core.correction import Correction
from ulskip_cli.core.engines import Engine, plugin_config_dirs
from ulskip_cli.core.errors import UnknownKey, UsageError, require_choice, unknown
from ulskip_cli.core.model_config import ModelConfig
from ulskip_cli.core.options import Choice, Options
from ulskip_cli.core.strategy import Strategy
from ulskip_cli.core.task import Task
from ulskip_cli.core.yaml_files import read_mapping

CHOICES: dict[str, type[Choice]] = {
    "task": Task,
    "strategy": Strategy,
    "correction": Correction,
    "engine": Engine,
}
RENAMED_KEYS = {
    "decoding.engine": "engine",
    "strategy.patch": "correction=patch correction.kind=full",
    "strategy.patch_rank": "correction.rank",
    "strategy.search_patch": (
        "correction=patch; a search measures its schedules with the patches in place"
    ),
    "model.skip_adapter": "correction=adapter correction.path=FOLDER",
    "calibration.responses": "correction.responses",
    "train.patch": "correction.kind",
    "train.patch_rank": "correction.rank",
    "train.patch_learning_rate": "correction.learning_rate",
    "train.patch_examples": "correction.examples",
    "patch": "correction=none, or correction.kind=full",
}
_TEXT_KEYS = ("task.prompt.", "task.response.", "task.templates.", "decoding.stop.")
_ESCAPES = {r"\n": "\n", r"\t": "\t", r"\\": "\\"}
_INSTEAD = {
    "model": "; for another model give model.path=<hub id or folder>",
    "task": "; for your own examples give task=jsonl task.file=<file>",
}


def config_dir() -> Path:
    """Return the folder of the shipped configs: inside an installed wheel, or beside the package in
    a checkout.
    """
    inside = Path(__file__).parents[1] / "configs"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "configs"


def group_choices(group: str, extra_dir: Path | None = None) -> dict[str, Path]:
    """Return the YAML files of a config group by name: shipped files, those of plug-ins, and those
    in the user's folder.
    """
    folders = [config_dir(), *_added_dirs(extra_dir)]
    return {
        path.stem: path for folder in folders for path in sorted((folder / group).glob("*.yaml"))
    }


def _added_dirs(extra_dir: Path | None) -> list[Path]:
    """Return the config folders of plug-ins and of the user."""
    if extra_dir is not None and not extra_dir.is_dir():
        raise UsageError(f"expected --config-dir to be a folder, got {extra_dir}")
    return [*plugin_config_dirs(), *([extra_dir] if extra_dir else [])]


def read_choice(group: str, choice: str, extra_dir: Path | None = None) -> dict[str, Any]:
    """Read the YAML file of a choice, merged over the choices of the same group in its `defaults`
    list.
    """
    files = group_choices(group, extra_dir)
    values: dict[str, Any] = OmegaConf.to_container(
        OmegaConf.merge(*_with_bases(group, choice, files, ()))
    )  # type: ignore[assignment]
    missing = [key for key in ("_target_", "name") if key not in values]
    if group in CHOICES and missing:
        raise UsageError(f"expected the key {missing[0]} in {files[choice]}, got none; add it")
    return values


def _with_bases(
    group: str, choice: str, files: Mapping[str, Path], inside: tuple[str, ...]
) -> Iterator[DictConfig]:
    """Yield the file of a choice after the files that it is based on."""
    file = files[require_choice(f"{group} in defaults", choice, files)]
    if choice in inside:
        raise UsageError(
            f"expected defaults without a cycle in {file}, got {' -> '.join([*inside, choice])}"
        )
    check_choice(file)
    preset = OmegaConf.load(file)
    assert isinstance(preset, DictConfig)
    for entry in preset.pop("defaults", None) or []:
        if isinstance(entry, str) and entry != "_self_":
            yield from _with_bases(group, entry, files, (*inside, choice))
    yield preset


def choice_class(node: Mapping[str, Any], group: str) -> type[Choice]:
    """Import the class that a preset names in `_target_`; raise UsageError if there is no such
    class of the group.

    Only YAML files of ulskip and of --config-dir name classes, because the import of a class runs
    its module.
    """
    target, what = str(node.get("_target_")), f"{group}={node.get('name')}"
    try:
        kind = pkgutil.resolve_name(target)
    except Exception as error:  # the module is the user's own and may fail in any way
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UsageError(
            f"{what}: cannot import the class {target} of _target_ ({reason})"
        ) from None
    base = CHOICES[group]
    if not isinstance(kind, type) or not issubclass(kind, base):
        raise UsageError(
            f"{what}: expected _target_ to name a subclass of {base.__module__}.{base.__name__},"
            f" got {target}"
        )
    return kind


def default_values(kind: type[Options], chosen: Mapping[str, type[Options]]) -> dict[str, Any]:
    """Return every key of a class with its default, nested; `chosen` has the classes of groups. A
    required key is `???`.
    """
    values: dict[str, Any] = {}
    for name, field in kind.model_fields.items():
        default = field.get_default(call_default_factory=True)
        if name in chosen:
            values[name] = default_values(chosen[name], {})
        elif isinstance(default, Options):
            values[name] = default_values(type(default), {})
        else:
            values[name] = MISSING if default is PydanticUndefined else to_jsonable_python(default)
    return values


def parse_overrides(overrides: Sequence[str]) -> list[Any]:
    """Parse `key=value` overrides with Hydra's parser, including sweeps."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    parsed = []
    for text in overrides:
        try:
            parsed.append(parser.parse_override(text))
        except HydraException:
            raise UsageError(
                f"expected key=value, got '{text[:80]}'; {_spelled_as_key(text)}"
            ) from None
    return parsed


def _spelled_as_key(text: str) -> str:
    """Suggest `task=wmt` for `wmt` or `--task=wmt`, or else give an example."""
    word = text.lstrip("-")
    groups = [path.parent.name for path in config_dir().glob("*/*.yaml") if path.stem == word]
    if groups:
        return f"did you mean {groups[0]}={word}?"
    if "=" in word:
        return (
            f"write {word}"
            if text.startswith("-")
            else "quote a value with spaces, braces or colons, e.g. 'key=\"value\"'"
        )
    return "an example is task=wmt ratio=2.0"


def refuse_renamed(keys: Iterable[str]) -> None:
    """Raise UsageError for a key that was renamed."""
    for key in keys:
        for old, new in RENAMED_KEYS.items():
            if key == old or key.startswith(f"{old}."):
                raise UsageError(f"{old} was renamed: use {new}")


def _refuse_fixed(keys: Iterable[str], groups: Sequence[str]) -> None:
    """Raise UsageError for an override of a key that only a config file can set."""
    for key in keys:
        group, _, name = key.partition(".")
        if group in groups and name in ("_target_", "name"):
            raise UsageError(
                f"{key} is not supported as an override, because it belongs to the file of {group};"
                f" use {group}=NAME"
            )
        if re.split(r"\W", key)[0] == "hydra":
            raise UsageError(
                f"{key} is not supported as an override; add config files with --config-dir DIR"
            )


def compose_values(
    primary: str,
    kind: type[Options],
    groups: Sequence[str],
    overrides: Sequence[str],
    extra_dir: Path | None,
) -> DictConfig:
    """Compose `configs/<primary>.yaml` with overrides of keys and `groups`; raise UsageError for an
    invalid override.
    """
    keys = [_key(text) for text in overrides]
    if (
        "model.path" in keys
        and "model" not in keys
        and not _experiment_has_random_weights(primary, groups, overrides, extra_dir)
    ):
        overrides = ["model=hf", *overrides]
    resolved = [_resolve_choice(override, groups, extra_dir) for override in overrides]
    resolved = [
        text for text in resolved if text != "experiment=null"
    ]  # Hydra refuses a group without a choice
    choices = [text for text in resolved if _key(text) in groups]
    chosen = _compose_choices(primary, tuple(choices), extra_dir, _file_stamps(extra_dir))
    classes: dict[str, type[Options]] = {
        group: choice_class(chosen[group], group)
        for group in CHOICES
        if group in groups and group in chosen
    }
    model: dict[str, Any] = {"model": ModelConfig}
    config = OmegaConf.create(default_values(kind, {**classes, **model}))
    known = set(_dotted_keys(config))
    refuse_renamed([*keys, *_dotted_keys(chosen)])
    _refuse_fixed(keys, groups)
    config = cast(DictConfig, OmegaConf.merge(config, chosen))
    known |= set(_dotted_keys(config))
    for text in resolved:
        if text.startswith("~"):
            raise UsageError(
                f"{text} is not supported; set {_key(text)} to its default, which `ulskip config`"
                " lists"
            )
        if not text.startswith("+") and _key(text) not in (*groups, *known):
            raise UnknownKey(str(_unknown_key(_key(text), sorted(known), groups)), _key(text))
    for override in parse_overrides([text for text in resolved if text not in choices]):
        key, value = override.key_or_group, override.value()
        value = _unescape(value) if f"{key}.".startswith(_TEXT_KEYS) else value
        try:
            OmegaConf.update(config, key, value, merge=True, force_add=True)
        except OmegaConfBaseException:
            raise UsageError(
                f"expected a value for {key}, got '{override.input_line}'; to add a key, write"
                f" +{key}.KEY=VALUE"
            ) from None
    return config


def _unescape(value: Any) -> Any:
    r"""Replace \n, \t and \\ in the texts of a value, because Hydra keeps them as they are, unlike
    YAML.
    """
    if isinstance(value, dict):
        return {key: _unescape(part) for key, part in value.items()}
    if isinstance(value, list):
        return list(map(_unescape, value))
    return (
        re.sub(r"\\[nt\\]", lambda match: _ESCAPES[match[0]], value)
        if isinstance(value, str)
        else value
    )


@functools.lru_cache(
    maxsize=128
)  # Hydra takes 0.1 s, and the points of a grid differ in few choices
def _compose_choices(
    primary: str, choices: tuple[str, ...], extra_dir: Path | None, stamps: object
) -> DictConfig:
    """Compose only the choices of groups. Callers must not change the result, but a copy of it."""
    return _hydra_compose(primary, choices, extra_dir)


def _file_stamps(extra_dir: Path | None) -> object:
    files = sorted(file for folder in _added_dirs(extra_dir) for file in folder.rglob("*.yaml"))
    return tuple((file, file.stat().st_mtime_ns, file.stat().st_size) for file in files)


def _experiment_has_random_weights(
    primary: str, groups: Sequence[str], overrides: Sequence[str], extra_dir: Path | None
) -> bool:
    """Return True if the chosen experiment uses random weights, so that `model.path` names a shape
    and not a checkpoint.
    """
    chosen = [
        _resolve_choice(text, groups, extra_dir) for text in overrides if _key(text) == "experiment"
    ]
    return (
        bool(chosen)
        and _compose_choices(
            primary, tuple(chosen), extra_dir, _file_stamps(extra_dir)
        ).model.source
        == "random"
    )


def _hydra_compose(primary: str, overrides: Sequence[str], extra_dir: Path | None) -> DictConfig:
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException

    folders = ",".join(f"file://{folder.resolve()}" for folder in _added_dirs(extra_dir))
    search = [f"hydra.searchpath=[{folders}]"] if folders else []
    try:
        with initialize_config_dir(str(config_dir().resolve()), version_base=None):
            return compose(primary, [*overrides, *search])
    except (HydraException, OmegaConfBaseException, OSError, ValueError) as error:
        raise UsageError(" ".join(str(error).split("\n")[0].split())) from None


def check_choice(file: Path) -> None:
    """Raise UsageError if a file of the user's config folder is not valid YAML, or if its
    `defaults` are no list of choices.
    """
    values = read_mapping(file)
    defaults = values.get("defaults") or []
    if not isinstance(defaults, list) or not all(
        isinstance(default, str | dict) for default in defaults
    ):
        raise UsageError(
            f"expected defaults in {file} to be a list of choices, got {str(defaults)[:80]}"
        )
    if not isinstance(values.get("name", ""), str):
        raise UsageError(f"expected name in {file} to be a text, got {str(values['name'])[:80]}")


def _resolve_choice(text: str, groups: Sequence[str], extra_dir: Path | None) -> str:
    parsed = parse_overrides([text])[0]
    if parsed.is_sweep_override():
        listed = text.replace("=", "=[", 1) + "]"
        raise UsageError(
            f"expected one value, got '{text}'; write a list as {listed}, a grid as `ulskip sweep"
            f" {text}`"
        )
    key, value = parsed.key_or_group, parsed.value()
    if key == "experiment" and value is None:
        return "experiment=null"
    if key not in groups:
        return text
    known = group_choices(key, extra_dir)
    by_folded_name = {name.replace("-", "_"): name for name in known}
    name = by_folded_name.get(str(value).replace("-", "_"))
    if name is not None and extra_dir is not None and known[name].is_relative_to(extra_dir):
        read_choice(key, name, extra_dir)  # raises UsageError for a file that is not a choice
    if name is None:
        raise unknown(
            key, value, known, f"`ulskip config {key}` describes them{_INSTEAD.get(key, '')}"
        )
    return text.split("=", 1)[0] + "=" + name


def _unknown_key(key: str, known: Sequence[str], groups: Sequence[str]) -> UsageError:
    group, _, name = key.partition(".")
    choices = group_choices(group) if group in CHOICES and group in groups else ()
    owners = [
        choice
        for choice in choices
        if name in choice_class(read_choice(group, choice), group).model_fields
    ]
    if owners:
        return UsageError(f"{key} requires {group}={' or '.join(owners)}")
    return unknown(
        "key",
        key,
        _sibling_keys(key, known),
        f"`ulskip config{f' {group}' if '.' in key else ''}` lists them",
    )


def _key(text: str) -> str:
    return text.split("=", 1)[0].lstrip("+~")


def _dotted_keys(node: DictConfig, prefix: str = "") -> Iterator[str]:
    for key in node:
        path = prefix + str(key)
        yield path
        if OmegaConf.is_dict(node._get_node(key)) and not node._get_node(key)._is_none():  # type: ignore[union-attr]
            yield from _dotted_keys(node[key], f"{path}.")


def _sibling_keys(key: str, known: Sequence[str]) -> list[str]:
    """Return the known keys of the same branch, or the top-level keys if the branch has none."""
    branch = key.rpartition(".")[0]
    hidden = ("_target_", ".name", ".description")
    siblings = [
        name for name in known if name.rpartition(".")[0] == branch and not name.endswith(hidden)
    ]
    return siblings or [name for name in known if "." not in name]
