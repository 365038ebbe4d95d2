import json

import pytest
import torch
from reference import NEW_STYLE
from report_rows import stored_rows

from ulskip_cli.core.config import compose, compose_point_or_grid
from ulskip_cli.core.errors import RunError
from ulskip_cli.core.schedule import Stage, step_counts
from ulskip_cli.experiments import paired_timing, runner
from ulskip_cli.experiments.ledger import Ledger, make_jobs
from ulskip_cli.experiments.paired_timing import bandwidth_meter
from ulskip_cli.experiments.statistics import sentence
from ulskip_cli.experiments.sweep import run_jobs
from ulskip_cli.report.columns import bandwidth_share, layers, read_rate
from ulskip_cli.report.tables import random_prompts

QUICK = ["speed.seconds=0", "speed.new_tokens=3", "speed.prompt_tokens=5", "batch_size=2"]
SHAPE = {**NEW_STYLE, "model_type": "llama", "tie_word_embeddings": True, "dtype": "float32"}
NORM, HEAD = 32, 101 * (32 + 12)  # bytes of the head, in 8 bits with three floats a row
LAYER = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 32 + 2 * NORM
KV = 2 * 16 * 4  # bytes a token and layer


@pytest.fixture(autouse=True)
def bandwidth(monkeypatch):
    """Memory that is read at 1 TB/s."""
    monkeypatch.setattr(paired_timing, "bandwidth_meter", lambda device: lambda: 1e12)


@pytest.fixture
def point(tmp_path):
    (tmp_path / "shape.json").write_text(json.dumps(SHAPE))
    random = ["model=random", f"model.path={tmp_path / 'shape.json'}"]
    base = [*random, f"results_dir={tmp_path}", "name=b", *QUICK]

    def make(*overrides, by=compose):
        return by([*base, *overrides], command="bench")

    return make


def run_all(*configs, force=True):
    """Run the benchmark of points."""
    ledger = Ledger(make_jobs(configs, command="bench"), force=force)
    run_jobs(ledger)
    return ledger.outcome()


@pytest.fixture
def bench(point):
    """Return a function that runs the benchmark of one point and returns its record."""

    def call(*overrides):
        outcome = run_all(point(*overrides))
        outcome.check()
        (record,) = outcome.records.values()
        return record

    return call


def step_bytes(num_layers, batch_size=2, patch=0, new_tokens=3):
    """The bytes that a step reads: weights, and the KV cache of the prompt and half the answer."""
    weights = num_layers * LAYER + patch
    return round(HEAD + 4 * weights + batch_size * num_layers * KV * (5 + new_tokens / 2))


def test_a_row_has_a_runs_keys_of_speed_and_none_of_quality(bench, tmp_path):
    record = bench("ratio=2")
    row = record.to_row()
    assert row["measured_speedup_low"] <= row["measured_speedup"] <= row["measured_speedup_high"]
    assert (row["target_speedup"], row["layer_ratio"], row["kept_layers"]) == (2.0, 2.0, [0, 2, 5])
    positive = "prefill_seconds time_per_output_token_seconds total_tokens_per_second"
    assert all(row[key] > 0 for key in [*positive.split(), "prompt_kv_bytes"])
    assert (row["engine"], row["timed_batch_size"], row["num_examples"]) == ("torch", 2, 0)
    assert not {"task", "baseline_id", "bleu", "decode_loss"} & row.keys()
    assert random_prompts(record) == "random prompts of 5 tokens, 3 new ones"
    assert row["training"] == "none: random weights"
    assert stored_rows(tmp_path / "b") == [row]
    assert not (tmp_path / "b" / "generations").exists()


def test_work_and_shares_are_exact(bench, monkeypatch):
    record = bench("ratio=2")
    assert record.step_bytes == step_bytes(3)
    share = record.step_bytes / record.time_per_output_token_seconds / 1e12
    assert bandwidth_share(record) == pytest.approx(share)
    assert bench("strategy=full").step_bytes == step_bytes(6)
    monkeypatch.setattr(paired_timing, "bandwidth_meter", lambda device: lambda: 1.0)
    assert bandwidth_share(bench("ratio=2")) is None  # above 1: the limit was not measured


@pytest.mark.parametrize(("kind", "size"), [("full", 32 * 32 + 32), ("folded", 0)])
def test_patches_are_timed_as_zeros_and_their_bytes_count(bench, spy, kind, size):
    made = spy(runner.Views, "of")
    row = bench("ratio=2", "correction=patch", f"correction.kind={kind}").to_row()
    stored = {"name": "patch", "kind": kind, "values": "zero", "bytes": 2 * 4 * size}
    assert row["correction"] == stored
    assert row["step_bytes"] == step_bytes(3, patch=2 * size)  # two gaps
    adapters = [adapter for call in made.call_args_list for adapter in call.args[2:3] if adapter]
    tensors = [item for adapter in adapters for item in adapter.tensors().items()]
    assert sum(tensor.numel() for _, tensor in tensors) == 2 * size
    assert not any(tensor.any() for name, tensor in tensors if "down" not in name)


def test_weights_and_the_full_model_are_shared(point, spy):
    made = spy(runner.Views, "of")
    ratios = [point(f"ratio={ratio}") for ratio in (2, 3)]
    records = run_all(*ratios, point("model.dtype=bfloat16")).records
    assert {*map(read_rate, records.values())} == {1e12}
    assert [len(call.args[1].kept_layers) for call in made.call_args_list] == [3, 6, 2, 3, 6]


def test_a_finished_point_is_measured_again_only_on_request(point, tmp_path):
    both = [point(f"engine={engine}") for engine in ("torch", "transformers")]
    for configs, force, count in ((both[:1], False, 1), (both, False, 3), (both, True, 6)):
        run_all(*configs, force=force)
        rows = stored_rows(tmp_path / "b")
        assert len(rows) == count
    assert len({row["id"] for row in rows}) == 3  # two points, and both full models


def test_the_full_model_of_a_further_engine_is_compared_with_that_of_the_first(point):
    engines = ["torch", "transformers", "transformers"]
    asked = zip(engines, (2, 2, 3), strict=True)
    outcome = run_all(*(point(f"engine={name}", f"ratio={ratio}") for name, ratio in asked))
    outcome.check()
    first, second, full, third = outcome.records.values()
    half = first, second, third
    assert [(row.engine, row.full_engine) for row in half] == [(name, None) for name in engines]
    assert (full.label, full.engine, full.full_engine) == ("full", "transformers", "torch")
    assert layers(full) == "6/6" and not full.is_own_baseline and full.predicted_speedup is None
    assert [side.engine for side in (full.pairs.strategy, full.pairs.full)] == engines[1::-1]
    assert "in transformers runs all 6 layers: " in sentence(full)


def test_a_baseline_engine_is_that_of_every_point(point):
    engines = ("engine=transformers", "engine=torch")
    points = [point(engine, "baseline_engine=torch") for engine in engines]
    records = run_all(*points).records.values()
    assert [record.full_engine for record in records] == ["torch", None]


def test_an_engine_that_fails_does_not_stop_the_others(point, monkeypatch):
    real = runner.prepare_run

    def prepare(point, *args):
        if point.config.engine.name == "transformers":
            raise RunError("no")
        return real(point, *args)

    monkeypatch.setattr(runner, "prepare_run", prepare)
    both = [point(f"engine={name}") for name in ("torch", "transformers")]
    outcome = run_all(*both)
    assert [record.engine for record in outcome.records.values()] == ["torch", None, None]
    labels = ("unified ratio 2 engine transformers", "full engine transformers")
    assert outcome.failures == [f"{label}: no" for label in labels]
    monkeypatch.setattr(runner, "prepare_run", real)
    again = run_all(*both, force=False)
    assert not again.failures
    assert [record.engine for record in again.records.values()] == ["torch", *["transformers"] * 2]


def test_a_refused_point_is_stored_as_one_of_a_benchmark(point):
    refused = point("strategy=early_exit", by=compose_point_or_grid)
    records = run_all(point("ratio=2"), refused).records
    assert [record.status for record in records.values()] == ["done", "n/a"]
    assert [record.command for record in records.values()] == ["bench", "bench"]
    assert records[refused.identity("bench")].task is None


def test_the_fastest_way_to_read_counts(monkeypatch):
    clock = iter([0.0, 3.0, 10.0, 12.0] + [20.0, 25.0] * 4)
    monkeypatch.setattr(paired_timing, "synchronized_time", lambda device: next(clock))
    assert bandwidth_meter(torch.device("cpu"))() == paired_timing.READ_BYTES / 2


def test_a_batch_that_does_not_fit_is_halved(bench, limit_memory):
    limit_memory()
    row = bench().to_row()
    assert row["timed_batch_size"] == 1
    assert row["step_bytes"] == step_bytes(3, batch_size=1)
    warning = next(warning for warning in row["warnings"] if "did not fit" in warning)
    assert all(text in warning for text in ("unified", "batch_size=2", "batch_size=1"))


def test_the_bytes_of_stages_are_a_mean_over_their_steps(bench):
    record = bench("ratio=2", "strategy=skip_decode", "strategy.horizon=4")
    steps = record.pairs.strategy.decoded_tokens[0] // 2
    later = (Stage(**stage.model_dump()) for stage in record.later_stages)
    stages = [Stage(0, record.kept_layers), *later]
    depths = [(count, len(kept)) for count, kept in step_counts(stages, steps)]
    assert sum(count > 0 for count, _ in depths) > 1
    read = [count * step_bytes(depth, new_tokens=steps + 1) for count, depth in depths]
    assert record.step_bytes == pytest.approx(sum(read) / steps)


def test_drafts_are_no_steps_of_their_own(bench):
    record = bench("decoding.draft_tokens=2", "batch_size=1")
    full, drafted = record.pairs.full, record.pairs.strategy
    assert full.linear_backend == drafted.linear_backend == record.linear_backend
    assert (record.engine, full.engine) == ("torch", "torch")
    assert 1 <= (record.mean_accepted_length or 1) <= 3
    assert record.step_bytes is bandwidth_share(record) is None
