import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ulskip_cli.tasks.metrics.bootstrap import compare

values = st.lists(st.floats(0, 100), min_size=2, max_size=30)


def test_a_clear_difference_has_an_interval_without_zero():
    rng = np.random.default_rng(0)
    full = rng.uniform(20, 40, 100)
    compared = compare(full - 5 + rng.normal(0, 1, 100), full)
    assert compared["delta_low"] < compared["delta"] < compared["delta_high"] < 0
    assert compared["p_value"] < 0.01


@given(values)
def test_nothing_differs_from_itself(own):
    compared = compare(np.array(own), np.array(own))
    assert (
        compared["delta"],
        compared["delta_low"],
        compared["delta_high"],
        compared["p_value"],
    ) == (0, 0, 0, 1)


@given(values)
def test_a_constant_difference_has_no_width(own):
    compared = compare(np.array(own) + 1, np.array(own))
    assert np.allclose([compared["delta"], compared["delta_low"], compared["delta_high"]], 1)
    assert (
        compared["p_value"] == 2 / 1001
    )  # the smallest that 1000 resamples can tell, as in sacrebleu
