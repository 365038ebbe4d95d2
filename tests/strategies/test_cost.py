import pytest
from hypothesis import given
from hypothesis import strategies as st

from ulskip_cli.core import schedule
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.weight_sizes import WeightSizes
from ulskip_cli.strategies.cost import LINE_ERROR, LatencyFit, num_kept_for_cost

sizes = st.builds(
    lambda head, layer, n: WeightSizes(head, (layer,) * n),
    st.integers(0, 10**9),
    st.integers(1, 10**8),
    st.integers(3, 80),
)


@given(sizes, st.floats(1, 40))
def test_num_kept_is_the_largest_that_reaches_the_target(weights, target):
    def speedup(count):
        return weights.predicted_speedup(schedule.even(len(weights.layers), count))

    if speedup(2) < target - 1e-9:
        with pytest.raises(UsageError, match=r"ratio=.* head .*ratio <= "):
            num_kept_for_cost(weights, target, speedup)
        return
    count = num_kept_for_cost(weights, target, speedup)
    assert speedup(count) >= target - 1e-9
    assert count == len(weights.layers) or speedup(count + 1) < target


fits = st.builds(
    lambda n, fixed, layer: LatencyFit.of(
        n, {count: fixed + layer * count for count in {2, max(2, n // 3), n}}
    ),
    st.integers(3, 80),
    st.floats(0, 1),
    st.floats(1e-3, 1),
)


@given(fits)
def test_a_line_is_found_again(fit):
    full = fit.step_seconds[fit.num_layers]
    for count, seconds in fit.step_seconds.items():
        assert fit.share(count) * full == pytest.approx(seconds)
    assert fit.share(fit.num_layers) == 1


@given(fits, st.floats(1, 40))
def test_the_depth_is_the_one_whose_step_is_so_much_faster(fit, target):
    highest = 1 / fit.share(2)
    depth = fit.depth(target)
    if target <= highest:
        fit.check(target)
        assert 1 / fit.share(depth) == pytest.approx(target)
    else:
        assert depth == 2
    if target > highest * LINE_ERROR:
        with pytest.raises(UsageError, match=r"ratio=.*ratio_basis=latency.*ratio <= "):
            fit.check(target)


def test_a_line_is_fitted_through_noise():
    fit = LatencyFit.of(10, {10: 11.0, 5: 6.3, 2: 3.0})
    assert fit.layer_seconds == pytest.approx(1.0, rel=0.05)
    assert fit.share(5) * fit.step_seconds[10] == pytest.approx(6.3, rel=0.05)
