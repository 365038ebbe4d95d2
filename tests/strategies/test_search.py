import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ulskip_cli.strategies.one_block import without_block

from ulskip_cli.core.config import preset
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.schedule import even
from ulskip_cli.strategies.search import Search, swaps


class Landscape:
    """A loss that a given set of layers has lowest."""

    def __init__(self, best):
        self.best, self.asked, self.told = set(best), [], []
        self.corrects = False

    def decode_loss(self, kept):
        self.asked.append(tuple(kept))
        return float(len(self.best - set(kept)))

    def tell(self, done, total):
        self.told.append((done, total))


def test_it_goes_from_even_spacing_to_the_best_set_and_keeps_the_path():
    seen = Landscape((0, 1, 2, 3))
    found = Search(budget=200).calibrate(8, 4, seen)
    assert found.options == {"layers": [0, 1, 2, 3]}
    assert seen.asked[0] == even(8, 4)
    losses = [step["loss"] for step in found.notes["path"]]
    assert losses == sorted(losses, reverse=True) and losses[-1] == 0
    assert found.notes["tried"] == len(seen.asked) == len(seen.told)


@given(st.integers(1, 30), st.integers(0, 5))
def test_the_budget_is_kept_and_nothing_is_tried_twice(budget, seed):
    seen = Landscape((0, 1, 2, 3))
    found = Search(budget=budget, seed=seed).calibrate(10, 4, seen)
    assert len(seen.asked) == len(set(seen.asked)) <= budget
    assert Landscape((0, 1, 2, 3)).decode_loss(found.options["layers"]) == min(
        map(Landscape((0, 1, 2, 3)).decode_loss, seen.asked)
    )


def test_a_seed_decides_the_order():
    paths = []
    for seed in (1, 1, 2):
        seen = Landscape((1, 2, 4, 7))
        Search(budget=20, seed=seed).calibrate(12, 4, seen)
        paths.append(seen.asked)
    assert paths[0] == paths[1] != paths[2]


@given(st.integers(3, 12), st.data())
def test_swaps_exchange_one_layer_near_ones_first(num_layers, data):
    kept = sorted(
        data.draw(st.sets(st.integers(0, num_layers - 1), min_size=1, max_size=num_layers - 1))
    )
    found = swaps(kept, num_layers, random.Random(1))
    assert len(found) == len(kept) * (num_layers - len(kept))
    distances = []
    for one in found:
        (out,), (into,) = set(kept) - set(one), set(one) - set(kept)
        distances.append(abs(out - into))
    assert distances == sorted(distances)


def test_what_was_found_is_kept_and_no_other_count():
    strategy = Search(layers=[0, 1, 5])
    assert strategy.is_calibrated and strategy.num_kept(6, 2.0) == 3
    assert (strategy.kept_layers(6, 3), Search().kept_layers(6, 4)) == ((0, 1, 5), even(6, 4))
    with pytest.raises(UsageError, match=r"\b4 of 6 layers.*strategy\.layers"):
        strategy.kept_layers(6, 4)
    with pytest.raises(UsageError, match=r"strategy\.budget"):
        preset("strategy", "search", {"budget": 0})


class Patched(Landscape):
    """A landscape with patches and known influence; without patches every schedule would be equally
    bad.
    """

    def __init__(self, best):
        super().__init__(best)
        self.corrects = True

    def block_influence(self):
        return [0.9, 0.8, 0.7, 0.1, 0.2, 0.3, 0.4, 0.5]


def test_with_patches_the_search_starts_from_influence_and_skipped_blocks_too():
    seen = Patched((0, 1, 6, 7))
    found = Search(budget=20).calibrate(8, 4, seen)
    assert found.options == {"layers": [0, 1, 6, 7]}
    starts = [(0, 1, 2, 7), *(without_block(8, 4, first) for first in (1, 2, 3)), even(8, 4)]
    assert seen.asked[: len(set(starts))] == list(dict.fromkeys(starts))
