import pytest

from ulskip_cli.core.config_schema import DecodingConfig
from ulskip_cli.core.errors import UsageError
from ulskip_cli.inference.engines.generate_options import OWN_KEYS, REFUSED, check, settings


def decoding(**changes):
    return DecodingConfig(name="x", **changes)


def test_options_are_passed_through():
    passed = {"length_penalty": 0.5, "early_stopping": True, "bad_words_ids": [[3]]}
    check(decoding(num_beams=2, options=passed))
    assert settings(decoding(options=passed)).items() >= passed.items()


def test_sampling_is_off_unless_asked_for():
    plain = settings(decoding())
    assert (plain["do_sample"], plain["temperature"], plain["top_p"]) == (False, 1.0, 1.0)
    asked = settings(decoding(do_sample=True, temperature=0.5, top_p=0.9, top_k=7))
    assert (asked["do_sample"], asked["temperature"], asked["top_p"], asked["top_k"]) == (True, 0.5, 0.9, 7)


@pytest.mark.parametrize("key", sorted(REFUSED))
def test_what_would_break_counting_or_the_two_phases_is_refused_by_name(key):
    with pytest.raises(UsageError, match=rf"decoding\.options\.{key} is refused"):
        check(decoding(options={key: 1}))


@pytest.mark.parametrize("key", sorted(OWN_KEYS))
def test_a_key_of_ours_is_pointed_out(key):
    with pytest.raises(UsageError, match=rf"has a key of its own: decoding\.{OWN_KEYS[key]}"):
        check(decoding(options={key: 1}))


def test_an_unknown_option_is_answered_with_the_nearest():
    with pytest.raises(UsageError, match="did you mean 'length_penalty'"):
        check(decoding(options={"lenght_penalty": 1}))


def test_more_at_least_than_at_most_is_refused():
    with pytest.raises(UsageError, match=r"min_new_tokens up to decoding\.max_new_tokens=64, got 80"):
        check(decoding(options={"min_new_tokens": 80}))


def test_a_value_that_transformers_refuses_is_one_line():
    with pytest.raises(UsageError, match=r"^decoding\.options: "):
        check(decoding(options={"early_stopping": "perhaps"}))
