"""Every command accepts its keys and refuses the others."""

import json
import re

import pytest

from ulskip_cli.core import config
from ulskip_cli.core import config_reference as reference
from ulskip_cli.core.errors import UsageError

COMPOSE = {
    **dict.fromkeys(
        ("run", "sweep", "generate", "bench", "plan", "export", "lm-eval"),
        config.compose_point_or_grid,
    ),
    "tune": lambda overrides, command: config.compose_tuning(["speedup=2", *overrides]),
    "train": lambda overrides, command: config.compose_training(overrides),
}


def every_key(primary):
    """Yield every key of a primary configuration with its default and the commands that the
    reference prints, and the groups themselves.
    """
    kind, groups = config.PRIMARY[primary]
    yield from (
        (key.name, key.default, key.commands) for key in reference.keys_outside_groups(primary)
    )
    for group in groups:
        if group != "experiment":
            commands = tuple(kind.readers(group))
            yield group, reference.default_choice(group), commands
            for key in reference.group_keys(group, reference.default_choice(group)):
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
    primary = config.primary_of(command)
    for key, default, commands in every_key(primary):
        message = refusal(command, f"{key}={as_text(default)}")
        assert (message is None) is (command in commands), (key, message)
        if message:
            assert f"`ulskip {command}` does not read {key}," in message
            told = re.search("a key of (.*);", message)[1].split(", ")
            assert told == sorted(commands)


def keys_of_choices():
    for primary in reference.PRIMARY:
        yield from reference.keys_outside_groups(primary)
    for group in reference.ALL_GROUPS:
        for choice in config.group_choices(group):
            yield from reference.group_keys(group, choice)


def test_every_key_has_a_meaning_and_a_type_and_every_choice_a_description():
    assert [key.name for key in keys_of_choices() if not key.meaning] == []
    assert [key.name for key in keys_of_choices() if not key.type and key.name != "seed"] == []
    for group in reference.ALL_GROUPS:
        assert all(reference.describe_choices(group).values()), group


@pytest.mark.parametrize(
    "overrides", [[], ["task=cnn_dm"], ["task=jsonl"], ["strategy=search"], ["decoding=sample"]]
)
def test_defaults_are_those_of_a_composed_configuration(overrides):
    composed = config.compose(overrides).plain()
    chosen = dict(text.split("=") for text in overrides)
    keys = [*reference.keys_outside_groups("config")]
    for group in ("task", "strategy", "decoding"):
        keys += reference.group_keys(group, chosen.get(group) or reference.default_choice(group))
    for key in keys:
        value = composed
        for part in key.name.split("."):
            value = value[part]
        assert value == key.default, key
