import itertools

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ulskip_cli.core import schedule
from ulskip_cli.core.config import compose
from ulskip_cli.core.model_metadata import ModelFolder
from ulskip_cli.core.strategy import ScheduleRequest
from ulskip_cli.strategies.dynamic_depth import SkipDecode
from ulskip_cli.strategies.plan import make_plan


def active(num_layers, num_kept, warmup, horizon, t):
    """The published description, position by position and without stages."""
    most = min(num_layers, round(4 * num_kept / 3))
    fewest = max(2 * num_kept - most, warmup + 1)
    most = min(most, 2 * num_kept - fewest)
    depth = round(most - (most - fewest) * min(t / horizon, 1))
    return set(range(warmup)) | set(range(num_layers - depth + warmup, num_layers))


def layers_at(stages, t):
    *_, last = (stage for stage in stages if stage.first_step <= t)
    return set(last.kept_layers)


@given(st.integers(3, 60), st.integers(2, 60), st.floats(0.5, 90))
def test_every_position_has_the_layers_of_the_formula(num_layers, num_kept, horizon):
    assume(num_kept <= num_layers)
    stages = SkipDecode(horizon=horizon).stages(ScheduleRequest(num_layers, num_kept))
    for t in range(110):
        assert layers_at(stages, t) == active(num_layers, num_kept, 1, horizon, t)
    for before, after in itertools.pairwise(stages):
        assert set(after.kept_layers) < set(before.kept_layers)  # no keys and values are missing


@given(
    st.integers(6, 60), st.integers(3, 30), st.lists(st.integers(20, 200), min_size=1, max_size=40)
)
def test_the_horizon_gives_the_asked_for_depth_on_average(num_layers, num_kept, lengths):
    assume(num_kept <= num_layers)
    request = ScheduleRequest(num_layers, num_kept, lengths=tuple(lengths))
    horizon, mean = SkipDecode().horizon_for(request)
    stages = SkipDecode(horizon=horizon).stages(ScheduleRequest(num_layers, num_kept))
    depths = [len(layers_at(stages, t)) for length in lengths for t in range(length - 1)]
    assert mean == pytest.approx(sum(depths) / len(depths))
    assert mean == pytest.approx(num_kept, abs=0.5)  # a horizon moves whole steps


def test_pairs_are_timed_over_as_many_tokens_as_have_the_asked_for_depth():
    config = compose(["strategy=skip_decode", "strategy.horizon=20"])
    metadata = ModelFolder(config.model).metadata
    plan = make_plan(config, metadata)
    assert plan.target_kept == 6
    assert plan.mean_kept(plan.timed_tokens - 1) == pytest.approx(6, abs=0.05)
    assert plan.layer_ratio == pytest.approx(2, abs=0.02)
    assert not plan.warnings
    sizes = config.engine.sizes(metadata, config.model.device, set(plan.needs))
    even = sizes.predicted_speedup(schedule.even(12, 6))
    assert plan.predicted_speedup == pytest.approx(even, rel=0.02)
