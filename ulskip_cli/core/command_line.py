"""The command line that makes a configuration, which records and exports name."""

import json
import re
import shlex
from collections.abc import Callable, Iterator

from pydantic_core import to_jsonable_python

from ulskip_cli.core.config import PRIMARY, compose_files, escaped, is_text, primary_of, quoted
from ulskip_cli.core.config_schema import BaseConfig
from ulskip_cli.core.files import JsonObject, change_texts
from ulskip_cli.core.options import Options

_PLAIN = re.compile(r"[A-Za-z_/.~-][\w/.~@%+-]*", re.ASCII)  # texts that need no quotes
NAMED = ("model", "task")  # groups that a command line names also if the choice is the default
IMPLIED_BY_PATH = ("model", "hf")  # model.path= selects it
_WORDS = ("true", "false", "null", "nan", "inf")


def command_line(config: BaseConfig, command: str, *more: str) -> str:
    """Return the line for a shell that runs a command with this configuration."""
    return shlex.join(["ulskip", command, *overrides_of(config, command), *more])


def overrides_of(config: BaseConfig, command: str) -> list[str]:
    """Return the overrides that compose a configuration again: the model, the task, choices that
    are not defaults, and values that differ from those of the choices.

    Keys that the command does not use are left out.
    """
    primary = primary_of(command)
    used = [group for group in PRIMARY[primary][1] if config.uses(group, command)]
    names = {group: str(getattr(config, group).name) for group in used}
    given = {group: names[group] for group in NAMED if group in names}
    files = compose_files(primary, **given)
    # The last group first: decoding=prompt_lookup selects strategy=full, which is then left out.
    for group, name in reversed(names.items()):
        if files.choices[group] != name:
            given[group] = name
            files = compose_files(primary, **given)

    def is_used(key: str) -> bool:
        return config.uses(key, command)

    choices = [
        f"{group}={name}"
        for group, name in names.items()
        if group in given and (group, name) != IMPLIED_BY_PATH
    ]
    return [*choices, *_changed(config, files.values(), is_used)]


def _changed(
    section: Options, stated: JsonObject, is_used: Callable[[str], bool], prefix: str = ""
) -> Iterator[str]:
    """Yield `key=value` for used values that files do not state; `prefix` is the section, with a
    dot.
    """
    for name, field in type(section).model_fields.items():
        key, value = f"{prefix}{name}", getattr(section, name)
        is_preset_name = name == "name" and prefix  # which the word of its group sets
        if is_preset_name or not is_used(key):
            continue
        known = stated.get(name, field.get_default(call_default_factory=True))
        plain = to_jsonable_python(value)
        if isinstance(value, Options):
            inner = known if isinstance(known, dict) else {}
            yield from _changed(value, inner, is_used, f"{key}.")
        elif known not in (value, plain):  # a default is a value, and files state plain ones
            plain = change_texts(plain, _without_interpolations)
            yield f"{key}={_text(escaped(plain) if is_text(key) else plain)}"


def _without_interpolations(text: str) -> str:
    r"""Escape a text so that no part is read as the value of another key.

    >>> print(_without_interpolations("${seed}"), _without_interpolations("a{b}"))
    \${seed} a{b}
    """
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", text)  # other backslashes are themselves


def _text(value: object) -> str:
    """Write a value in the grammar of overrides.

    >>> _text([0, "a b", None, True]), _text({"file": "x.de"})
    ('[0,"a b",null,true]', '{file:x.de}')
    """
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, list):
        return f"[{','.join(map(_text, value))}]"
    if isinstance(value, dict):
        items = [f"{_text(key)}:{_text(item)}" for key, item in value.items()]
        return f"{{{','.join(items)}}}"
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    text = str(value)
    needs_quotes = text.lower() in _WORDS or not _PLAIN.fullmatch(text)
    return quoted(text) if isinstance(value, str) and needs_quotes else text
