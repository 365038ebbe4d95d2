import pytest

from ulskip_cli.errors import UsageError
from ulskip_cli.strategies.early_exit import EarlyExit


def test_any_layer_may_run_and_the_mean_is_that_of_the_static_strategies():
    strategy = EarlyExit()
    assert strategy.num_kept(30, 2.0) == 15
    assert strategy.kept_layers(30, 15) == tuple(range(30))
    rule = strategy.exit_rule(30, 15, max_new_tokens=64)
    assert (rule.target_depth, rule.horizon, rule.threshold) == (15, 64, None)
    assert EarlyExit(horizon=20, threshold=0.5).exit_rule(30, 15, 64).horizon == 20


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"confidence": "softmax"}, "did you mean"),
        ({"batch": "mean"}, "strategy.batch"),
        ({"threshold": -0.1}, "strategy.threshold"),
        ({"horizon": 0}, "strategy.horizon"),
        ({"min_exit": 0}, "strategy.min_exit"),
        ({"every": 0}, "strategy.every"),
    ],
)
def test_options_that_cannot_be_are_refused(options, named):
    with pytest.raises(UsageError, match=named):
        EarlyExit(**options)
