import pytest

from ulskip_cli.core.config_schema import DecodingConfig
from ulskip_cli.core.errors import UsageError
from ulskip_cli.engines.transformers.options import (
    REFUSED,
    check_generate_kwargs,
    generate_settings,
)


def decoding(**changes):
    return DecodingConfig(name="x", **changes)


def test_options_are_passed_through():
    passed = {"length_penalty": 0.5, "early_stopping": True, "bad_words_ids": [[3]]}
    check_generate_kwargs(decoding(num_beams=2, generate_kwargs=passed))
    assert generate_settings(decoding(generate_kwargs=passed)).items() >= passed.items()


def test_an_unknown_option_is_refused_with_the_most_similar_name():
    with pytest.raises(UsageError, match="length_penalty"):
        check_generate_kwargs(decoding(generate_kwargs={"lenght_penalty": 1}))


@pytest.mark.parametrize(
    ("key", "value"),
    [("early_stopping", "perhaps"), ("output_scores", True), ("compile_config", {})],
)
def test_a_value_that_transformers_refuses_is_reported(key, value):
    with pytest.raises(UsageError, match=rf"decoding\.generate_kwargs.*{key}"):
        check_generate_kwargs(decoding(generate_kwargs={key: value}))


@pytest.mark.parametrize("key", sorted({*REFUSED, *generate_settings(DecodingConfig())}))
def test_options_that_change_counts_or_have_a_key_of_their_own_are_refused_by_name(key):
    with pytest.raises(UsageError, match=rf"generate_kwargs\.{key}"):
        check_generate_kwargs(decoding(generate_kwargs={key: 1}))
