from hypothesis import given
from hypothesis import strategies as st

from ulskip_cli.tasks.metrics import degenerate

blocks = st.lists(st.integers(0, 9), min_size=1, max_size=8)


@given(st.lists(st.integers(0, 9), max_size=20), blocks)
def test_any_block_four_times_is_a_loop(prefix, block):
    assert degenerate.ends_in_loop([*prefix, *block * 4])


@given(st.lists(st.integers(), unique=True, max_size=40))
def test_distinct_tokens_are_no_loop(tokens):
    assert not degenerate.ends_in_loop(tokens)


def test_flags():
    assert degenerate.flags([1], "  ", hit_max_length=False) == ["empty"]
    assert degenerate.flags([7] * 4, "x x x x", hit_max_length=True) == ["loop", "hit_limit"]
    assert degenerate.flags([1, 2, 3], "fine", hit_max_length=False) == []


def test_length_ratio_counts_words():
    assert degenerate.length_ratio(["a b", ""], ["a b c", "d"]) == 0.5
