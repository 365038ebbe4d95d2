from dataclasses import replace
from functools import partial

import pytest
import torch
from reference import NUM_LAYERS, random_ids

from ulskip_cli.core.config import compose
from ulskip_cli.core.config_schema import DecodingConfig
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.model_metadata import ModelMetadata
from ulskip_cli.engines.decoder import DecodeContext, Decoder
from ulskip_cli.experiments import paired_timing as latency_target
from ulskip_cli.experiments.paired_timing import (
    LINE_ROUNDS,
    WARM_UP,
    fit_step_latency,
    make_pair_timer,
    solve_depth_for_speedup,
)
from ulskip_cli.inference.loading import LoadedModel
from ulskip_cli.strategies.cost import LatencyFit


def test_the_line_comes_from_steps_taken_in_turns(llama, monkeypatch):
    timed = []
    run = latency_target.Pair.run

    def clocked(self, *args):
        full, output, compiling = run(self, *args)
        timed.append(len(self.strategy.stages[0].kept))
        seconds = output.steps * (0.5 + 0.25 * timed[-1])
        return full, replace(output, decode_seconds=seconds), compiling

    monkeypatch.setattr(latency_target.Pair, "run", clocked)
    ids, done = random_ids(2, 5), []
    fit = fit_step_latency(
        partial(Decoder, llama),
        NUM_LAYERS,
        [(ids, torch.ones_like(ids))],
        DecodeContext(DecodingConfig(name="g"), 0),
        done.append,
    )
    assert (round(fit.fixed_seconds, 6), round(fit.layer_seconds, 6)) == (0.5, 0.25)
    assert done == list(range(1, WARM_UP + LINE_ROUNDS + 1))
    assert timed[:3] == [6, 4, 2]
    assert timed[3:6] == [2, 4, 6]


@pytest.mark.parametrize(("target", "slower"), [(1.5, 0.03), (2.0, -0.02), (2.9, 0.0)])
def test_a_target_is_met_where_the_line_errs(target, slower):
    """The clock shows more or less than the line, and another slope."""
    line = LatencyFit.of(12, {12: 15.0, 2: 5.0})  # 3 + 1 a layer
    rounds = []

    def share(depth):
        return (3 + 1.05 * depth) / 15.6 + slower

    met = solve_depth_for_speedup(
        line, target, lambda depth: (depth, [1 / share(depth)] * 5), rounds.append
    )
    assert 1 / share(met.depth) == pytest.approx(target, rel=2 * latency_target.CLOSE)
    assert met.as_dict()["speedup"] == pytest.approx(target)
    assert len(met.trials) == len(rounds) <= latency_target.MEET_ROUNDS


def test_noise_takes_more_rounds():
    line = LatencyFit.of(12, {12: 15.0, 2: 5.0})
    noise = iter(torch.randn(1000, generator=torch.Generator().manual_seed(0)).tolist())
    met = solve_depth_for_speedup(
        line,
        2,
        lambda depth: (depth, [15 / (3 + depth) * (1 + 0.05 * next(noise)) for _ in range(5)]),
    )
    assert len(met.trials) > 2
    assert met.depth == pytest.approx(4.5, abs=0.5)


def test_a_target_out_of_reach_is_refused_before_it_is_timed():
    line = LatencyFit.of(12, {12: 15.0, 2: 5.0})
    with pytest.raises(UsageError, match=r"ratio=4 .*latency.* 20%.*ratio <= 3\.00"):
        solve_depth_for_speedup(line, 4, lambda depth: pytest.fail("timed"))


@pytest.mark.parametrize(("kind", "parts"), [("full", 2), ("folded", 0)])
def test_pairs_are_timed_with_patches_that_change_nothing(llama, monkeypatch, kind, parts):
    made, real = [], latency_target.Decoder
    monkeypatch.setattr(
        latency_target, "Decoder", lambda *args, **more: made.append(more) or real(*args, **more)
    )
    correction = ["correction=patch", f"correction.kind={kind}"]
    config = compose(["ratio=2", "ratio_basis=latency", "speed.new_tokens=9", *correction])
    loaded = LoadedModel(llama, None, ModelMetadata(NUM_LAYERS, None, None), {})
    measured = make_pair_timer(loaded, None, config)
    measured(3.5)
    full, shallow = made
    assert full["adapter"] is None
    tensors = shallow["adapter"].tensors if shallow["adapter"] else {}
    assert len(tensors) == (2 + 2) * parts  # at the gaps of 4 layers and of 3
    assert not any(tensor.any() for name, tensor in tensors.items() if "down" not in name)
