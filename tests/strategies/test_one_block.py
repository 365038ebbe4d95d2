import pytest
from hypothesis import given
from hypothesis import strategies as st
from ulskip_cli.strategies.one_block import OneBlock, first_layers

from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.schedule import even


class HeldOut:
    """A loss with its minimum at one block."""

    def __init__(self, best):
        self.best, self.asked = best, []

    def decode_loss(self, layers):
        self.asked.append(layers)
        return abs(next(i for i in range(len(layers) + 1) if i not in layers) - self.best)

    def tell(self, done, total):
        assert done <= total


@given(st.integers(3, 30), st.data())
def test_a_skipped_block_lies_between_the_first_and_the_last_layer(num_layers, data):
    num_kept = data.draw(st.integers(2, num_layers - 1))
    for first in first_layers(num_layers, num_kept):
        kept = OneBlock(first=first).kept_layers(num_layers, num_kept)
        skipped = sorted(set(range(num_layers)) - set(kept))
        assert len(kept) == num_kept and {0, num_layers - 1} <= set(kept)
        assert skipped == list(range(first, first + num_layers - num_kept))


@given(st.integers(4, 30), st.data())
def test_the_best_block_is_found_within_the_budget(num_layers, data):
    num_kept = data.draw(st.integers(2, num_layers - 1))
    best = data.draw(st.sampled_from(first_layers(num_layers, num_kept)))
    budget = data.draw(st.integers(1, 12))
    held_out = HeldOut(best)
    found = OneBlock(budget=budget).calibrate(num_layers, num_kept, held_out)
    assert len(held_out.asked) == len(set(held_out.asked)) == min(budget, num_kept - 1)
    if budget == 12:
        assert abs(found.options["first"] - best) <= (0 if num_kept <= 13 else 1)


def test_a_block_beyond_the_last_layer_is_refused_and_all_layers_can_be_kept():
    assert OneBlock().kept_layers(6, 6) == even(6, 6)
    assert OneBlock().kept_layers(6, 2) == (0, 5)
    with pytest.raises(UsageError, match=r"strategy\.first.*1 and 3"):
        OneBlock(first=4).kept_layers(6, 4)
