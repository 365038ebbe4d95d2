import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ulskip_cli.experiments.intervals import (
    ENOUGH,
    PROCESS_SPREAD,
    UNITS,
    ratio_interval,
    student_t,
)

RATIOS = st.floats(0.1, 10)


def draws(count, units, between, within):
    """Ratios around 1 as `count` processes of a machine would measure them."""
    random = np.random.default_rng(0)
    means = random.normal(0, between, (count, 1))
    return np.exp(means + random.normal(0, within, (count, units)))


@given(st.lists(RATIOS, min_size=1, max_size=12))
def test_an_interval_lies_around_its_value(units):
    value, low, high = ratio_interval(units)
    assert low <= value * (1 + 1e-9) and value <= high * (1 + 1e-9)


@given(st.lists(RATIOS, min_size=1, max_size=UNITS - 1))
def test_few_units_have_their_range(ratios):
    assert ratio_interval(ratios)[1:] == pytest.approx((min(ratios), max(ratios)))


@pytest.mark.parametrize("units", [3, 6, 12])
@pytest.mark.parametrize("within", [0.005, 0.03])
def test_intervals_contain_the_true_ratio_as_often_as_they_say(units, within):
    found = map(ratio_interval, draws(1500, units, PROCESS_SPREAD, within))
    assert np.mean([low <= 1 <= high for _, low, high in found]) > 0.935


@pytest.mark.parametrize("units", [3, 5, 7])
def test_few_units_that_agree_by_chance_do_not_exclude_what_others_would_show(units):
    _, low, high = ratio_interval([0.91] * units)
    assert high > 0.91 * 1.05 and low < 0.91 * 0.95
    assert ratio_interval([0.91] * 3).high > 1 > ratio_interval([0.91] * ENOUGH).high


def test_more_units_narrow_an_interval():
    def width(units):
        found = map(ratio_interval, draws(200, units, PROCESS_SPREAD, 0.02))
        return np.mean([math.log(high / low) for _, low, high in found])

    assert width(3) > width(6) > width(30)


@pytest.mark.parametrize(("freedom", "confidence", "value"), [(2, 0.9975, 19.96), (5, 0.99, 4.032)])
def test_the_quantile_of_another_confidence_is_that_of_tables(freedom, confidence, value):
    assert student_t(freedom, confidence) == pytest.approx(value, abs=5e-3)


@given(st.integers(1, 400))
def test_the_quantile_falls_to_that_of_the_normal_distribution(freedom):
    assert student_t(freedom) > student_t(freedom + 1) > NormalDist().inv_cdf(0.975) - 1e-4
