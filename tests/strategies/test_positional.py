import itertools

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from reference import decoder_for, reference_greedy

from ulskip_cli.core import schedule
from ulskip_cli.core.config import compose
from ulskip_cli.core.config_schema import DecodingConfig
from ulskip_cli.core.model_metadata import ModelFolder
from ulskip_cli.core.strategy import ScheduleRequest
from ulskip_cli.engines.decoder import DecodeContext
from ulskip_cli.strategies.plan import make_plan
from ulskip_cli.strategies.positional import DepthDecay, SkipDecode


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
    plan = make_plan(config, ModelFolder(config.model).metadata)
    assert plan.target_kept == 6
    assert plan.mean_kept(plan.timed_tokens - 1) == pytest.approx(6, abs=0.05)
    assert plan.layer_ratio == pytest.approx(2, abs=0.02)
    assert not plan.warnings
    assert plan.predicted_speedup == pytest.approx(
        ModelFolder(config.model).metadata.weights.predicted_speedup(schedule.even(12, 6)), rel=0.02
    )


@given(st.integers(3, 80), st.data(), st.integers(2, 600))
def test_the_decay_meets_the_asked_for_depth_over_the_limit(num_layers, data, max_new_tokens):
    num_kept = data.draw(st.integers(2, num_layers))
    request = ScheduleRequest(num_layers, num_kept, max_new_tokens=max_new_tokens)
    stages = DepthDecay().stages(request)
    assert schedule.mean_kept(stages, [max_new_tokens]) == pytest.approx(num_kept, abs=1)
    assert DepthDecay().kept_layers(request) == stages[0].kept_layers
    for stage in stages:
        assert {0, num_layers - 1} <= set(stage.kept_layers) <= set(range(num_layers))
        assert len(schedule.layer_ranges(stage.kept_layers)) <= 2  # one block is skipped
    for before, after in itertools.pairwise(stages):
        assert before.first_step < after.first_step
        assert set(after.kept_layers) < set(before.kept_layers)  # no keys and values are missing


def test_the_depth_of_a_token_is_a_power_of_the_decay():
    stages = DepthDecay().stages(ScheduleRequest(12, 6, max_new_tokens=64))
    depths = [len(layers_at(stages, step)) for step in range(63)]
    fits = [
        decay
        for decay in (i / 10_000 for i in range(9_000, 10_000))
        if depths == [max(2, int(12 * decay**token)) for token in range(1, 64)]
    ]
    assert fits and depths[0] == 11 and depths[-1] == 3
    assert stages[-1].kept_layers == (0, 1, 11)


@pytest.mark.parametrize("strategy", ["skip_decode", "d3"])
@pytest.mark.parametrize("engine", ["torch", "transformers"])
def test_tokens_are_those_of_an_uncached_reference(model, engine, strategy):
    options = {"skip_decode": ["strategy.horizon=5"], "d3": ["decoding.max_new_tokens=6"]}
    overrides = [f"strategy={strategy}", *options[strategy], "ratio=1.5"]
    decoder = decoder_for(model, *overrides).with_engine(engine)
    kept = {stage.first_step: stage.kept for stage in decoder.stages}
    ids = torch.tensor([[0, 0, 5, 6], [7, 8, 9, 10]])
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    output = decoder.generate(ids, mask, DecodeContext(DecodingConfig(name="greedy"), 0), 9)
    assert len(kept) >= 3
    assert output.token_ids == reference_greedy(model, ids, mask, kept, 9).tolist()
