"""Which commands read a key: every command accepts its keys and refuses the others."""

import json
import re

import pytest

from ulskip_cli.core.config import (
    PRIMARY,
    compose_training,
    compose_tuning,
    compose_unvalidated,
    primary_of,
)
from ulskip_cli.core.config_reference import default_choice, group_keys, top_level_keys
from ulskip_cli.core.errors import UsageError

COMPOSE = {
    **dict.fromkeys(
        ("run", "sweep", "generate", "bench", "plan", "export", "lm-eval"), compose_unvalidated
    ),
    "tune": lambda overrides, command: compose_tuning(["speedup=2", *overrides]),
    "train": lambda overrides, command: compose_training(overrides),
}


def every_key(primary):
    """Yield every key of a primary configuration with its default and the commands that the
    reference prints, and the groups themselves.
    """
    kind, groups = PRIMARY[primary]
    yield from ((key.name, key.default, key.commands) for key in top_level_keys(primary))
    for group in groups:
        if group != "experiment":
            commands = tuple(kind.readers(group))
            yield group, default_choice(group), commands
            for key in group_keys(group, default_choice(group)):
                yield key.name, key.default, key.commands or commands


def as_text(value):
    """Return a value as the text of an override."""
    text = "{}" if isinstance(value, dict) else json.dumps(value)
    return text.replace('"', "") if isinstance(value, list | tuple) else text.replace('"', "'")


def refusal(command, override):
    """Return the message with which a command refuses a key that it does not read."""
    try:
        COMPOSE[command]([override], command)
    except UsageError as error:  # a value may be refused for another reason
        return str(error) if "does not read" in str(error) else None


@pytest.mark.parametrize("command", COMPOSE)
def test_every_key_is_read_or_refused_with_the_commands_that_read_it(command):
    primary = primary_of(command)
    for key, default, commands in every_key(primary):
        message = refusal(command, f"{key}={as_text(default)}")
        assert (message is None) is (command in commands), (key, message)
        if message:
            assert f"`ulskip {command}` does not read {key}," in message
            told = re.search("a key of (.*);", message)[1].split(", ")
            assert told == sorted(commands)
