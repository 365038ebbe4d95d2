import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ulskip_cli.core import schedule
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.schedule import ExitRule

GOLDEN = [  # the published code's picks
    (30, 2, (*range(0, 27, 2), 29)),
    (30, 3, (*range(0, 25, 3), 29)),
    (30, 5, (0, 6, 12, 18, 24, 29)),
    (30, 10, (0, 15, 29)),
    (32, 1.5, (*range(20), 31)),  # rounding clusters them at the bottom
]
counts = st.integers(2, 200).flatmap(lambda n: st.tuples(st.just(n), st.integers(2, n)))


@pytest.mark.parametrize(("num_layers", "ratio", "kept"), GOLDEN)
def test_reference_equals_the_published_picks(num_layers, ratio, kept):
    num_kept = schedule.num_kept(num_layers, ratio, tolerance=0)
    assert schedule.reference(num_layers, num_kept) == kept


@pytest.mark.parametrize("spacing", [schedule.even, schedule.reference])
def test_every_count_of_every_depth_is_met_exactly(spacing):
    for num_layers in range(3, 201):
        for num_kept in range(2, num_layers + 1):
            kept = spacing(num_layers, num_kept)
            assert (kept[0], kept[-1], len(kept)) == (0, num_layers - 1, num_kept)
            assert schedule.checked(num_layers, kept) == kept


@given(counts)
def test_even_gaps_differ_by_at_most_one_layer_around_the_mean(pair):
    kept = schedule.even(*pair)
    gaps = [b - a for a, b in pairwise(kept)]
    assert max(gaps) - min(gaps) <= 1


@given(st.integers(3, 200), st.floats(1, 300))
def test_num_kept_is_the_floor_or_refused(num_layers, ratio):
    if num_layers / ratio < 2 - 1e-9:
        with pytest.raises(UsageError, match=f"ratio <= {num_layers / 2:g}$"):
            schedule.num_kept(num_layers, ratio)
        return
    count = schedule.num_kept(num_layers, ratio)
    assert 2 <= count <= num_layers
    assert count <= num_layers / ratio + 1e-6 < count + 1 + 1e-6


@given(counts)
def test_a_ratio_made_of_a_count_gives_that_count(pair):
    num_layers, num_kept = pair
    if num_layers >= 3:
        assert schedule.num_kept(num_layers, num_layers / num_kept) == num_kept


def test_ratios_below_one_and_too_shallow_models_are_refused():
    for ratio in (0.5, 0, -1, math.nan, math.inf):
        with pytest.raises(UsageError, match="ratio >= 1"):
            schedule.num_kept(30, ratio)
    with pytest.raises(UsageError, match=r"\b3 decoder layers.*\b2\b"):
        schedule.num_kept(2, 1.0)


@given(st.floats(0, 1), st.integers(0, 300), st.integers(1, 300))
def test_a_threshold_falls_by_a_tenth_and_no_further(threshold, step, horizon):
    rule = ExitRule(12, 6, threshold, horizon)
    now, later = rule.threshold_at(step), rule.threshold_at(step + 1)
    assert 0.9 * threshold - 1e-12 <= later <= now <= threshold + 1e-12
    assert rule.threshold_at(horizon) == pytest.approx(threshold * (0.9 + 0.1 * math.exp(-4)))


@given(st.integers(3, 80), st.integers(1, 80), st.integers(1, 20))
def test_checks_lie_within_the_layers(num_layers, min_exit, every):
    rule = ExitRule(num_layers, num_layers, 0.5, 10, min_exit, every)
    assert all(min_exit <= depth < num_layers for depth in rule.checks)
    for depth in (*rule.checks, num_layers):
        assert 1 <= rule.heads(depth) <= len(rule.checks) + 1


@given(st.sets(st.integers(0, 40), min_size=1))
def test_ranges_cover_the_layers(kept):
    found = schedule.layer_ranges(sorted(kept))
    assert [i for begin, end in found for i in range(begin, end)] == sorted(kept)
    assert all(end < begin for (_, end), (begin, _) in pairwise(found))
