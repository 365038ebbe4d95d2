import pytest
from hypothesis import given
from hypothesis import strategies as st

from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.strategy import ScheduleRequest
from ulskip_cli.strategies.dynamic_depth import EarlyExit


def test_any_layer_may_run_and_the_mean_is_that_of_the_static_strategies():
    strategy = EarlyExit()
    assert strategy.num_kept(30, 2.0) == 15
    assert strategy.kept_layers(ScheduleRequest(30, 15)) == tuple(range(30))
    rule = strategy.exit_rule(ScheduleRequest(30, 15, max_new_tokens=64))
    assert (rule.target_depth, rule.horizon, rule.threshold) == (15, 64, None)
    assert EarlyExit(horizon=20, threshold=0.5).exit_rule(ScheduleRequest(30, 15)).horizon == 20


@pytest.mark.parametrize(
    ("options", "request_", "message"),
    [
        ({"min_exit": 4}, ScheduleRequest(12, 3), r"at most 3 of 12 .*strategy\.min_exit"),
        ({"min_exit": 12}, ScheduleRequest(12, 12), "at most 11 of 12 layers"),
    ],
)
def test_exits_that_cannot_meet_the_request_are_refused(options, request_, message):
    with pytest.raises(UsageError, match=message):
        EarlyExit(**options).exit_rule(request_)


class Smooth:
    """A model whose mean depth rises with the threshold, as a formula."""

    def __init__(self, depth):
        self.depth, self.tried = depth, []

    def output_lengths(self):
        return [5, 17, 9]

    def mean_depth(self, options):
        self.tried.append(options)
        return self.depth(options["threshold"])

    def report_progress(self, done, total):
        assert 1 <= done <= total


@given(st.integers(2, 11), st.floats(0.4, 8))
def test_the_threshold_makes_the_mean_depth_that_of_the_static_strategies(num_kept, steepness):
    held_out = Smooth(lambda threshold: 1 + 11 * threshold**steepness)
    found = EarlyExit().calibrate(ScheduleRequest(12, num_kept), held_out)
    assert 1 + 11 * found.options["threshold"] ** steepness == pytest.approx(num_kept, rel=0.02)
    assert found.options["horizon"] == 17
    assert found.notes["mean_kept_layers"] == pytest.approx(num_kept, rel=0.02)
    assert EarlyExit(**found.options).is_calibrated
