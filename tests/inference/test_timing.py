import torch
from hypothesis import given
from hypothesis import strategies as st

from ulskip_cli.inference.timing import median_interval, now


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=20))
def test_the_interval_contains_the_median(samples):
    interval = median_interval(samples, resamples=200)
    assert min(samples) <= interval.low <= interval.high <= max(samples)
    assert min(samples) <= interval.median <= max(samples)


def test_intervals_repeat():
    assert median_interval([1.0, 2.0, 5.0]) == median_interval([1.0, 2.0, 5.0])


def test_the_clock_is_steady():
    device = torch.device("cpu")
    assert now(device) <= now(device)
