from hypothesis import given
from hypothesis import strategies as st

from ulskip_cli.core.answer import Answer
from ulskip_cli.experiments.evaluate import degenerate_flags, ends_in_loop, length_ratio

blocks = st.lists(st.integers(0, 9), min_size=1, max_size=8)


@given(st.lists(st.integers(0, 9), max_size=20), blocks)
def test_any_block_four_times_is_a_loop(prefix, block):
    assert ends_in_loop([*prefix, *block * 4])


@given(st.lists(st.integers(), unique=True, max_size=40))
def test_distinct_tokens_are_no_loop(tokens):
    assert not ends_in_loop(tokens)


def test_flags():
    answers = Answer("  ", [1], False), Answer("x x x x", [7] * 4, True)
    assert list(map(degenerate_flags, answers)) == [["empty"], ["loop", "hit_limit"]]
    assert degenerate_flags(Answer("fine", [1, 2, 3], False)) == []


def test_length_ratio_counts_words():
    assert length_ratio(["a b", ""], ["a b c", "d"]) == 0.5
