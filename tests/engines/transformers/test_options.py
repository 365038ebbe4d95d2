import pytest

from ulskip_cli.core.config_schema import DecodingConfig
from ulskip_cli.core.errors import UsageError
from ulskip_cli.engines.transformers.options import OWN_KEYS, REFUSED, check, settings


def decoding(**changes):
    return DecodingConfig(name="x", **changes)


def test_options_are_passed_through():
    passed = {"length_penalty": 0.5, "early_stopping": True, "bad_words_ids": [[3]]}
    check(decoding(num_beams=2, generate_kwargs=passed))
    assert settings(decoding(generate_kwargs=passed)).items() >= passed.items()


def test_sampling_is_off_by_default():
    plain = settings(decoding())
    assert (plain["do_sample"], plain["temperature"], plain["top_p"]) == (False, 1.0, 1.0)
    asked = settings(decoding(do_sample=True, temperature=0.5, top_p=0.9, top_k=7))
    assert (asked["do_sample"], asked["temperature"], asked["top_p"], asked["top_k"]) == (
        True,
        0.5,
        0.9,
        7,
    )


@pytest.mark.parametrize("key", sorted(REFUSED))
def test_unsupported_options_are_refused_by_name(key):
    with pytest.raises(UsageError, match=rf"decoding\.generate_kwargs\.{key}"):
        check(decoding(generate_kwargs={key: 1}))


@pytest.mark.parametrize("key", sorted(OWN_KEYS))
def test_an_option_with_its_own_key_is_refused_with_that_key(key):
    with pytest.raises(UsageError, match=rf"decoding\.{OWN_KEYS[key]}"):
        check(decoding(generate_kwargs={key: 1}))


def test_an_unknown_option_is_refused_with_the_most_similar_name():
    with pytest.raises(UsageError, match="length_penalty"):
        check(decoding(generate_kwargs={"lenght_penalty": 1}))


def test_a_minimum_above_the_maximum_is_refused():
    with pytest.raises(UsageError, match=r"min_new_tokens.*64.*80"):
        check(decoding(generate_kwargs={"min_new_tokens": 80}))


@pytest.mark.parametrize(
    ("key", "value"),
    [("early_stopping", "perhaps"), ("output_scores", True), ("compile_config", {})],
)
def test_a_value_that_transformers_refuses_is_reported(key, value):
    with pytest.raises(UsageError, match=rf"decoding\.generate_kwargs.*{key}"):
        check(decoding(generate_kwargs={key: value}))
