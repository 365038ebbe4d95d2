"""The texts that `--help` and `ulskip config` show of config groups, choices and keys."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from ulskip_cli.cli.config_keys import Panels
from ulskip_cli.core import config_reference as reference
from ulskip_cli.core.config import group_choices, implied_choices
from ulskip_cli.core.config_reference import ALL_GROUPS, ConfigKey
from ulskip_cli.core.errors import require_choice


def named_choices(words: Iterable[str]) -> dict[str, str]:
    """Return the group choices that words such as `task=jsonl` name or imply."""
    named = [(group, choice) for group, _, choice in (word.partition("=") for word in words)]
    known = [(group, choice) for group, choice in named if choice in group_choices(group)]
    implied = [implied_choices(group, choice) for group, choice in known]
    return {key: choice for choices in (*implied, dict(known)) for key, choice in choices.items()}


def command_panels(command: str, words: Iterable[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the groups and keys of a command with the choices that the words name."""
    named = named_choices(words)
    chosen = {**implied_choices("", reference.primary_of(command)), **named}
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


def describe(name: str, extra_dir: Path | None) -> Panels:
    """Return what `ulskip config NAME` prints; raise UsageError for an unknown name."""
    group, _, choice = name.partition("=")
    if name:
        require_choice("config group", group, ALL_GROUPS)
        return _describe_group(group, choice, extra_dir)
    lines = {f"{group}=": ", ".join(group_choices(group, extra_dir)) for group in ALL_GROUPS}
    shared = {key.name for key in reference.top_level_keys("config")}
    tuning = [key for key in reference.top_level_keys("tune") if key.name not in shared]
    return [
        ("Config groups and their choices; `ulskip config GROUP` describes them", lines),
        (
            "Other keys of run, sweep, bench and plan",
            _meanings(reference.top_level_keys("config")),
        ),
        ("Further keys of tune", _meanings(tuning)),
        ("Other keys of train", _meanings(reference.top_level_keys("train"))),
    ]


def _describe_group(group: str, choice: str, extra_dir: Path | None) -> Panels:
    described = reference.describe_choices(group, extra_dir)
    if choice:
        require_choice(group, choice, described)
        described = {choice: described[choice]}
    keys = {name: reference.group_keys(group, name, extra_dir) for name in described}
    choices = {f"{group}={name}": text for name, text in described.items()}
    alike = group not in ("task", "strategy") and not choice  # then one choice has all keys
    return [
        (f"Choices of {group}", choices),
        *(
            (f"Keys of {group}={name}", _meanings(keys[name]))
            for name in described
            if keys[name] and not (alike and name != reference.default_choice(group))
        ),
    ]


def _meanings(keys: Iterable[ConfigKey]) -> dict[str, str]:
    return {key.name: _meaning(key) for key in keys}


def _meaning(key: ConfigKey) -> str:
    value = json.dumps(key.default, ensure_ascii=False).replace('"', "")
    choices = f" [{'|'.join(key.choices)}]" if key.choices else ""
    return f"{key.meaning}{choices} [default: {value}]"
