"""The texts that `--help` and `ulskip config` show of config groups, choices and keys."""

import json
from collections.abc import Iterable, Iterator

from ulskip_cli.cli.config_keys import Panels
from ulskip_cli.core import config_reference as reference
from ulskip_cli.core.config import PRIMARY, group_choices, implied_choices, primary_of
from ulskip_cli.core.config_reference import ALL_GROUPS, ConfigKey
from ulskip_cli.core.errors import require_choice, unknown

MAX_DEFAULT = 40  # characters of a default value that help shows


def named_choices(words: Iterable[str]) -> dict[str, str]:
    """Return the group choices that words such as `task=jsonl` name or imply."""
    named, implied = dict[str, str](), dict[str, str]()
    for word in words:
        group, _, choice = word.partition("=")
        if choice in group_choices(group):
            named[group] = choice
            implied |= implied_choices(group, choice)
    return implied | named


def command_panels(command: str, words: Iterable[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the groups and keys of a command with the choices that the words name."""
    named = named_choices(words)
    chosen = {**implied_choices("", primary_of(command)), **named}
    groups = {
        f"{group}=": ", ".join(group_choices(group))
        + (f" [default: {chosen[group]}]" if group in chosen else "")
        for group in reference.groups_of(command)
    }
    yield "Config groups, given as group=choice", groups
    sections: dict[str, list[ConfigKey]] = {"": []}
    for key in reference.command_keys(command, named):
        sections.setdefault(key.name.rpartition(".")[0].partition(".")[0], []).append(key)
    for section, keys in sections.items():
        choice = f" of {section}={chosen[section]}" if section in chosen else ""
        title = f"Keys {section}.*{choice}" if section else "Keys, given as key=value"
        yield title, _meanings(keys)


def describe(name: str) -> Panels:
    """Return what `ulskip config NAME` prints; raise UsageError for an unknown name."""
    group, _, choice = name.partition("=")
    if not name:
        return _describe_all()
    if group in ALL_GROUPS:
        return _describe_group(group, choice.replace("-", "_"))
    group, keys = name.partition(".")[0], dict[str, ConfigKey]()
    if group in ALL_GROUPS:
        keys |= _keys_of_choices(group)
    for primary in PRIMARY:  # the first key of a name is that of run
        for key in reference.top_level_keys(primary):
            keys.setdefault(key.name, key)
    shown = [key for key in keys.values() if f"{key.name}.".startswith(f"{name}.")]
    if not shown:
        raise unknown(
            "config group or key", name, [*ALL_GROUPS, *keys], "`ulskip config` lists all"
        )
    return [(f"Keys of {name}", _meanings(shown))]


def _describe_all() -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the groups with their choices, and all keys: those outside groups, and of groups."""
    yield (
        "Config groups and their choices; `ulskip config GROUP` describes them",
        {f"{group}=": ", ".join(group_choices(group)) for group in ALL_GROUPS},
    )
    titles = {"config": "Keys of run, sweep, bench and plan", "tune": "Further keys of tune"}
    shown = set[str]()
    for primary in PRIMARY:
        keys = [key for key in reference.top_level_keys(primary) if key.name not in shown]
        yield titles.get(primary, f"Further keys of {primary}"), _meanings(keys)
        shown |= {key.name for key in keys}
    for group in ALL_GROUPS:
        if inside := _keys_of_choices(group):
            yield f"Keys {group}.* of all choices", _meanings(inside.values())


def _keys_of_choices(group: str) -> dict[str, ConfigKey]:
    """Return the keys of all choices of a group by name, with the values of the default choice if
    it has the key.
    """
    default, keys = reference.default_choice(group), dict[str, ConfigKey]()
    for choice in sorted(group_choices(group), key=lambda name: name != default):
        inside = reference.group_keys(group, choice)
        keys |= {key.name: key for key in inside if key.name not in keys}
    return keys


def _describe_group(group: str, choice: str) -> Panels:
    """Return the choices of a group with their keys as panels."""
    described = reference.describe_choices(group)
    folded = {name.replace("-", "_"): name for name in described}
    default = reference.default_choice(group)
    if choice:
        default = folded.get(choice) or require_choice(group, choice, described)
        described = {default: described[default]}
    panels = [(f"Choices of {group}", {f"{group}={name}": described[name] for name in described})]
    for name in described:
        keys = reference.group_keys(group, name)
        # Of other groups, one choice has all keys.
        if keys and (group in ("task", "strategy") or name == default):
            panels.append((f"Keys of {group}={name}", _meanings(keys)))
    return panels


def _meanings(keys: Iterable[ConfigKey]) -> dict[str, str]:
    return {key.name: _meaning(key) for key in keys}


def _meaning(key: ConfigKey) -> str:
    value = json.dumps(key.default, ensure_ascii=False).replace('"', "")
    shown = value if len(value) <= MAX_DEFAULT else value[: MAX_DEFAULT - 1] + "…"
    choices = f" [{'|'.join(key.choices)}]" if key.choices else ""
    return f"{key.meaning}{choices} [default: {shown}]"
