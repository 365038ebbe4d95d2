"""The command line that makes a configuration: how other commands, records and exports name one."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from pydantic_core import to_jsonable_python

from ulskip_cli.core.config import PRIMARY, escaped, implied_choices, is_text, read_choice
from ulskip_cli.core.config_schema import Config, Shared
from ulskip_cli.core.options import Options

_PLAIN = re.compile(r"[A-Za-z_/.~-][\w/.~@%+-]*", re.ASCII)  # texts that need no quotes
NAMED = ("model", "task")  # groups that a command line names also if the choice is the default
PATH_ALONE = ("model", "hf")  # model.path= implies it
_WORDS = ("true", "false", "null", "nan", "inf")


def command_line(config: Shared, command: str, *more: str) -> str:
    """Return the command line for a shell that runs a command with this configuration."""
    return shlex.join(["ulskip", command, *overrides_of(config, command), *more])


def overrides_of(config: Shared, command: str, extra_dir: Path | None = None) -> list[str]:
    """Return the overrides that compose a configuration again: the model, the task, the choices of
    other groups that are not selected by default, and the values in which it differs from them.

    Keys that the command does not use are left out.
    """
    primary = command if command in PRIMARY else "config"
    groups = [group for group in PRIMARY[primary][1] if group in type(config).model_fields]
    groups = [group for group in groups if config.uses(group, command)]
    names = {group: getattr(config, group).name for group in groups}
    stated, selected = read_choice("", primary), implied_choices("", primary)
    for group, name in names.items():
        selected |= implied_choices(group, name, extra_dir)
    texts = [
        f"{group}={name}"
        for group, name in names.items()
        if (group in NAMED or name != selected[group]) and (group, name) != PATH_ALONE
    ]
    for group, name in names.items():
        texts += _changed(config, group, read_choice(group, name, extra_dir), command)
    for name in type(config).model_fields:
        value = getattr(config, name)
        if name not in groups and config.uses(name, command):
            if isinstance(value, Options):
                texts += _changed(config, name, stated.get(name, {}), command)
            elif value != stated.get(name, type(config).model_fields[name].default):
                texts.append(_override(name, value))
    return texts


def _changed(config: Shared, section: str, stated: object, command: str) -> Iterator[str]:
    """Yield the overrides of the values of a section that differ from those of its file and from
    the defaults.
    """
    options: Options = getattr(config, section)
    values = dict(stated) if isinstance(stated, dict) else {}
    if isinstance(config, Config) and section == "decoding":
        values.setdefault("max_new_tokens", config.task.max_new_tokens)

    def walk(part: Options, prefix: str, given: dict[str, object]) -> Iterator[str]:
        for name, field in type(part).model_fields.items():
            value, default = getattr(part, name), field.get_default(call_default_factory=True)
            known = given.get(name, default)
            if not config.uses(f"{prefix}.{name}", command):
                continue
            if isinstance(value, Options):
                yield from walk(value, f"{prefix}.{name}", known if isinstance(known, dict) else {})
            elif name != "name" and value != known and to_jsonable_python(value) != known:
                yield _override(f"{prefix}.{name}", value)

    return walk(options, section, values)


def _override(key: str, value: object) -> str:
    plain = to_jsonable_python(value)
    return f"{key}={_text(escaped(plain) if is_text(key) else plain)}"


def _text(value: object) -> str:
    """Write a value in the grammar of overrides.

    >>> _text([0, "a b", None, True]), _text({"file": "x.de"})
    ('[0,"a b",null,true]', '{file:x.de}')
    """
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, list):
        return f"[{','.join(map(_text, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{_text(key)}:{_text(item)}' for key, item in value.items())}}}"
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    text = str(value)
    if not isinstance(value, str) or (_PLAIN.fullmatch(text) and text.lower() not in _WORDS):
        return text
    # In quotes, a backslash is itself unless it stands before a quote.
    quoted = re.sub(r'(\\*)"', r'\1\1\\"', text)
    return '"' + re.sub(r"(\\+)$", r"\1\1", quoted) + '"'
