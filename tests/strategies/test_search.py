from itertools import pairwise

import numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import SpectralClustering

from ulskip_cli.core.schedule import even
from ulskip_cli.core.strategy import ScheduleRequest
from ulskip_cli.strategies.search import (
    BlockInfluence,
    LoRP,
    OneBlock,
    Search,
    clusters,
    skipping_order,
    without_block,
)


class Landscape:
    """A loss that a given set of layers has lowest."""

    def __init__(self, best, measures_with_patches=False):
        self.best, self.asked, self.measures_with_patches = set(best), [], measures_with_patches

    def decode_loss(self, kept):
        self.asked.append(tuple(kept))
        return float(len(self.best - set(kept)))

    def report_progress(self, done, total):
        assert done <= total

    def state_similarity(self):
        influence = [0.9, 0.8, 0.7, 0.1, 0.2, 0.3, 0.4, 0.5]
        return [[1 - influence[row]] * 9 for row in range(8)] + [[1.0] * 9]


class OneMinimum(Landscape):
    """A loss with its minimum at one block."""

    def decode_loss(self, kept):
        super().decode_loss(kept)
        (best,) = self.best
        return abs(next(i for i in range(len(kept) + 1) if i not in kept) - best)


def test_the_layers_of_the_highest_influence_stay_and_of_equal_ones_the_lower():
    strategy = BlockInfluence(scores=[0.5, 0.1, 0.1, 0.9])
    for kept in ((0, 3), (0, 1, 3)):
        assert strategy.kept_layers(ScheduleRequest(4, len(kept))) == kept
    found = BlockInfluence().calibrate(ScheduleRequest(8, 2), Landscape(())).options
    assert BlockInfluence(**found).kept_layers(ScheduleRequest(8, 2)) == (0, 1)


@given(st.integers(3, 30), st.data())
def test_a_skipped_block_lies_between_the_first_and_the_last_layer(num_layers, data):
    num_kept = data.draw(st.integers(2, num_layers - 1))
    for first in range(1, num_kept):
        kept = OneBlock(first=first).kept_layers(ScheduleRequest(num_layers, num_kept))
        skipped = sorted(set(range(num_layers)) - set(kept))
        assert len(kept) == num_kept and {0, num_layers - 1} <= set(kept)
        assert skipped == list(range(first, first + num_layers - num_kept))


@given(st.integers(4, 30), st.data())
def test_the_best_block_is_found_within_the_budget(num_layers, data):
    num_kept = data.draw(st.integers(2, num_layers - 1))
    best = data.draw(st.sampled_from(range(1, num_kept)))
    budget = data.draw(st.integers(1, 12))
    held_out = OneMinimum([best])
    found = OneBlock(budget=budget).calibrate(ScheduleRequest(num_layers, num_kept), held_out)
    assert len(held_out.asked) == len(set(held_out.asked)) == min(budget, num_kept - 1)
    if budget == 12:
        assert abs(found.options["first"] - best) <= (0 if num_kept <= 13 else 1)


def test_a_search_goes_from_even_spacing_to_the_best_set_and_keeps_the_path():
    landscape = Landscape((0, 1, 2, 3))
    found = Search(budget=200).calibrate(ScheduleRequest(8, 4), landscape)
    assert found.options == {"layers": [0, 1, 2, 3]} and landscape.asked[0] == even(8, 4)
    assert Search(**found.options).kept_layers(ScheduleRequest(8, 4)) == (0, 1, 2, 3)
    assert Search().kept_layers(ScheduleRequest(6, 4)) == even(6, 4)
    losses = [step["loss"] for step in found.notes["path"]]
    assert losses == sorted(losses, reverse=True) and losses[-1] == 0
    assert found.notes["tried"] == len(landscape.asked)


@given(st.integers(1, 30), st.integers(0, 5))
def test_a_search_keeps_its_budget_and_returns_the_best_that_it_tried(budget, seed):
    landscapes, search = (
        [Landscape((0, 1, 2, 3)) for _ in range(2)],
        Search(budget=budget, seed=seed),
    )
    first, _ = (search.calibrate(ScheduleRequest(10, 4), seen) for seen in landscapes)
    asked = landscapes[0].asked
    assert len(asked) == len(set(asked)) <= budget and asked == landscapes[1].asked
    losses = [landscapes[0].decode_loss(layers) for layers in [first.options["layers"], *asked]]
    assert losses[0] == min(losses)


def test_with_patches_the_search_starts_from_influence_and_skipped_blocks_too():
    landscape = Landscape((0, 1, 6, 7), measures_with_patches=True)
    found = Search(budget=20).calibrate(ScheduleRequest(8, 4), landscape)
    assert found.options == {"layers": [0, 1, 6, 7]}
    starts = [(0, 1, 2, 7), *(without_block(8, 4, first) for first in (1, 2, 3)), even(8, 4)]
    assert landscape.asked[: len(set(starts))] == list(dict.fromkeys(starts))


class States:
    """Held-out states whose similarity is known."""

    def __init__(self, states):
        units = states / numpy.linalg.norm(states, axis=1, keepdims=True)
        self.similar = units @ units.T

    def state_similarity(self):
        return self.similar.tolist()


def phases(data, sizes):
    """Return the input of a stack, and outputs of its layers near one direction a phase."""
    random = numpy.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    means = numpy.eye(len(sizes) + 1, 32)[numpy.repeat(range(len(sizes) + 1), [1, *sizes])]
    return means + 0.03 * random.standard_normal(means.shape)


@given(st.lists(st.integers(3, 8), min_size=2, max_size=4), st.data())
@settings(max_examples=20, deadline=None)
def test_lorp_finds_clusters_that_are_known(sizes, data):
    similar = States(phases(data, sizes)).similar[1:, 1:].tolist()
    ends = numpy.cumsum(sizes).tolist()
    wanted = [[*range(end - size, end)] for end, size in zip(ends, sizes, strict=True)]
    assert clusters(similar, len(sizes)) == wanted


@given(st.integers(3, 10), st.data())
@settings(max_examples=20, deadline=None)
def test_lorp_skips_a_layer_of_each_cluster_and_the_ends_last(size, data):
    found = LoRP().calibrate(ScheduleRequest(2 * size, 2), States(phases(data, [size, size])))
    # (size - 1) / (2 size - 1) of the pairs are alike, fewer than half
    assert found.notes["locality"] > 1
    assert found.notes["clusters"] == [[*range(size)], [*range(size, 2 * size)]]
    kept = [
        set(LoRP(**found.options).kept_layers(ScheduleRequest(2 * size, count)))
        for count in range(2, 2 * size + 1)
    ]
    assert kept[0] == {0, 2 * size - 1}
    assert all(few < more for few, more in pairwise(kept))
    first, second = sorted(kept[-1] - kept[-3])
    assert first < size <= second


@given(st.integers(6, 32), st.integers(2, 4), st.data())
@settings(max_examples=20, deadline=None)
def test_lorp_clusters_like_scikit_learn(num_layers, count, data):
    random = numpy.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    walk = random.standard_normal((num_layers, 8)).cumsum(0) + 2 * random.standard_normal(8)
    similar = States(walk).similar
    found = clusters(similar.tolist(), count)
    reference = SpectralClustering(count, affinity="precomputed", random_state=0, n_init=50)
    labels = reference.fit_predict((similar + 1) / 2).tolist()
    wanted = [[i for i in range(num_layers) if labels[i] == k] for k in dict.fromkeys(labels)]
    assert found == wanted


def test_lorp_skips_next_in_the_cluster_with_the_most_redundancy_left():
    similar = numpy.full((7, 7), 0.125)
    similar[:4, :4], similar[4:, 4:] = 0.875, 0.5
    similar[1, 2] = similar[2, 1] = 0.9375  # layers 1 and 2 are the most redundant
    numpy.fill_diagonal(similar, 1)
    # one of each; then the first cluster, while a pair with layer 0 is left; the ends come last
    assert skipping_order(similar.tolist(), [[0, 1, 2, 3], [4, 5, 6]]) == (1, 4, 2, 3, 5, 6, 0)
