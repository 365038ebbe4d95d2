import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ulskip_cli.inference.timing import median_interval, now


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=20))
def test_the_interval_contains_the_median(samples):
    interval = median_interval(samples)
    assert min(samples) <= interval.low <= interval.median <= interval.high <= max(samples)
    assert 0 <= interval.coverage < 1


@pytest.mark.parametrize("count", [7, 12, 25])
def test_the_interval_contains_the_true_median_with_its_coverage(count):
    """Skewed samples, as timings are; a percentile bootstrap covers less than 90% at seven."""
    draws = np.random.default_rng(0).lognormal(size=(4000, count))
    intervals = [median_interval(samples) for samples in draws]
    covered = np.mean([interval.low <= 1.0 <= interval.high for interval in intervals])
    assert covered >= 0.945
    assert covered == pytest.approx(intervals[0].coverage, abs=0.012)


def test_few_samples_give_minimum_maximum_and_lower_coverage():
    assert median_interval([3.0]).coverage == 0
    five = median_interval([5.0, 1.0, 4.0, 2.0, 3.0])
    assert (five.low, five.high, five.coverage) == (1.0, 5.0, 0.9375)
    nine = median_interval(range(9))
    assert (nine.low, nine.high) == (1.0, 7.0)


def test_the_clock_is_monotonic():
    device = torch.device("cpu")
    assert now(device) <= now(device)
