import pytest

from ulskip_cli.core import config
from ulskip_cli.core import config_reference as reference


def every_key():
    for primary in reference.PRIMARY:
        yield from reference.top_level_keys(primary)
    for group in reference.ALL_GROUPS:
        for choice in config.group_choices(group):
            yield from reference.group_keys(group, choice)


def test_every_key_has_a_meaning_and_a_type_and_every_choice_a_description():
    assert [key.name for key in every_key() if not key.meaning] == []
    assert [key.name for key in every_key() if not key.type and key.name != "seed"] == []
    for group in reference.ALL_GROUPS:
        assert all(reference.describe_choices(group).values()), group


@pytest.mark.parametrize(
    "overrides", [[], ["task=cnn_dm"], ["task=jsonl"], ["strategy=search"], ["decoding=sample"]]
)
def test_defaults_are_those_of_a_composed_configuration(overrides):
    composed = config.compose(overrides).plain()
    chosen = {**config.implied_choices("", "config"), **dict(text.split("=") for text in overrides)}
    keys = [*reference.top_level_keys("config")]
    for group in ("task", "strategy", "decoding"):
        keys += reference.group_keys(group, chosen[group])
    for key in keys:
        value = composed
        for part in key.name.split("."):
            value = value[part]
        assert value == key.default, key
