from typing import Any

from ulskip_cli.core.config_types import describe_type, field_type

from ulskip_cli.core.config_schema import Config, SpeedConfig


def test_the_type_of_a_dotted_key():
    assert field_type(Config, "ratio") is float
    assert field_type(Config, "speed.pairs") is int
    assert field_type(Config, "speed") is SpeedConfig
    assert field_type(Config, "speed.pears") is Any
    assert field_type(Config, "ratio.more") is Any


def test_types_are_named_in_plain_words():
    assert describe_type(field_type(Config, "limit")) == "a whole number or null"
    assert describe_type(field_type(Config, "decoding.draft_tokens")) == "a whole number or a text"
    assert describe_type(field_type(Config, "decoding.generate_kwargs")).startswith("texts as keys")
