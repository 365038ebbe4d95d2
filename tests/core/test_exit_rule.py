import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.schedule import ExitRule


@given(st.floats(0, 1), st.integers(0, 300), st.integers(1, 300))
def test_a_threshold_falls_by_a_tenth_and_no_further(threshold, step, horizon):
    rule = ExitRule(12, 6, "softmax_max", threshold, horizon)
    now, later = rule.threshold_at(step), rule.threshold_at(step + 1)
    assert 0.9 * threshold - 1e-12 <= later <= now <= threshold + 1e-12
    assert rule.threshold_at(horizon) == pytest.approx(threshold * (0.9 + 0.1 * math.exp(-4)))


confidences = st.sampled_from(["softmax_max", "cosine"])


@given(st.integers(3, 80), st.integers(1, 80), st.integers(1, 20), confidences)
def test_checks_lie_within_the_layers(num_layers, min_exit, every, confidence):
    rule = ExitRule(num_layers, num_layers, confidence, 0.5, 10, min_exit, every)
    assert all(min_exit <= depth < num_layers for depth in rule.checks)
    assert rule.least_depth <= num_layers
    for depth in (*rule.checks, num_layers):
        assert 1 <= rule.heads(depth) <= len(rule.checks) + 1


def test_a_target_below_every_exit_is_refused():
    with pytest.raises(UsageError, match=r"strategy\.min_exit, strategy\.every"):
        ExitRule(12, 3, "softmax_max", None, 64, min_exit=4)
    with pytest.raises(UsageError, match=r"strategy\.confidence=cosine"):
        ExitRule(12, 4, "cosine", None, 64, min_exit=4)
