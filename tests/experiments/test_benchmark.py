import json
from statistics import median
from types import SimpleNamespace

import pytest
import torch
from reference import NEW_STYLE

from ulskip_cli.core.config import compose, compose_unvalidated
from ulskip_cli.core.errors import RunError
from ulskip_cli.core.schedule import Stage, step_counts
from ulskip_cli.experiments import benchmark, paired_timing, preflight, runner
from ulskip_cli.experiments.paired_timing import bandwidth_meter
from ulskip_cli.experiments.sweep import jobs
from ulskip_cli.experiments.sweep.jobs import Sweep, SweepObserver, make_jobs

QUICK = ["speed.seconds=0", "speed.new_tokens=3", "speed.prompt_tokens=5"]
QUICK += ["batch_size=2"]
SHAPE = {**NEW_STYLE, "model_type": "llama", "tie_word_embeddings": True, "dtype": "float32"}
NORM, HEAD = 32, 101 * 32
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


@pytest.fixture
def decoders(monkeypatch):
    """The arguments of the decoders that are made, in order."""
    made, real = [], runner.Decoder

    def decoder(*args, **more):
        made.append(args)
        return real(*args, **more)

    monkeypatch.setattr(runner, "Decoder", decoder)
    return made


def run_all(*points, force=True):
    """Run the benchmark of points."""
    return Sweep(make_jobs(points, command="bench"), SweepObserver(), force=force).run()


@pytest.fixture
def bench(point):
    """Return a function that runs the benchmark of one point and returns its row."""

    def call(*overrides):
        outcome = run_all(point(*overrides))
        outcome.check()
        (record,) = outcome.records.values()
        return record.to_row()

    return call


def step_bytes(num_layers, batch_size=2, patch=0, new_tokens=3):
    """The bytes that a step reads: weights, and keys and values of the prompt and half the
    answer.
    """
    weights = HEAD + NORM + num_layers * LAYER + patch
    return round(4 * weights + batch_size * num_layers * KV * (5 + new_tokens / 2))


def test_a_row_has_a_runs_keys_of_speed_and_none_of_quality(bench, tmp_path):
    row = bench("ratio=2")
    assert row["measured_speedup_low"] <= row["measured_speedup"] <= row["measured_speedup_high"]
    assert (row["target_speedup"], row["layer_ratio"], row["kept_layers"]) == (2.0, 2.0, [0, 2, 5])
    positive = "prefill_seconds time_per_output_token_seconds total_tokens_per_second"
    assert all(row[key] > 0 for key in [*positive.split(), "prompt_kv_bytes"])
    assert row["engine"] == "torch"
    assert not {"task", "baseline_id", "bleu", "decode_loss"} & row.keys()
    timed = [row[f"timed_{key}"] for key in ("batch_size", "prompt_tokens", "new_tokens")]
    assert timed == [2, 5, 3]
    assert row["training"] == "none: random weights"
    (line,) = (tmp_path / "b" / "runs.jsonl").read_text().splitlines()
    assert json.loads(line) == row
    assert (tmp_path / "b" / "configs" / f"{row['id']}.yaml").is_file()
    assert not (tmp_path / "b" / "generations").exists()


def test_work_and_shares_are_exact(bench):
    row = bench("ratio=2")
    for side, layers, seconds in ((row, 3, "strategy"), (row["full"], 6, "full")):
        assert side["step_bytes"] == step_bytes(layers)
        times = row["pairs"][seconds]["decode_seconds"]
        shares = [side["step_bytes"] / (time / 2) / 1e12 for time in times]
        assert side["bandwidth_share"] == pytest.approx(median(shares), rel=0.01)


@pytest.mark.parametrize(("kind", "size"), [("full", 32 * 32 + 32), ("folded", 0)])
def test_patches_are_timed_as_zeros_and_their_bytes_count(bench, decoders, kind, size):
    row = bench("ratio=2", "correction=patch", f"correction.kind={kind}")
    stored = {"name": "patch", "kind": kind, "values": "zero", "bytes": 2 * 4 * size}
    assert row["correction"] == stored
    assert row["step_bytes"] == step_bytes(3, patch=2 * size)  # two gaps
    assert row["full"]["step_bytes"] == step_bytes(6)
    adapters = [adapter for args in decoders for adapter in args[2:3] if adapter]
    tensors = [item for adapter in adapters for item in adapter.tensors.items()]
    assert sum(tensor.numel() for _, tensor in tensors) == 2 * size
    assert not any(tensor.any() for name, tensor in tensors if "down" not in name)


def test_weights_and_the_full_model_are_shared(point, decoders):
    points = [point(f"ratio={ratio}") for ratio in (2, 3)]
    records = run_all(*points, point("model.dtype=bfloat16")).records
    assert {record.machine_limits.bytes_per_second for record in records.values()} == {1e12}
    assert [len(plan.kept_layers) for _, plan, *_ in decoders] == [3, 6, 2, 3, 6]


def test_a_finished_point_is_measured_again_only_on_request(point, tmp_path):
    both = [point(f"engine={engine}") for engine in ("torch", "transformers")]
    for points, force, count in ((both[:1], False, 1), (both, False, 3), (both, False, 3)):
        run_all(*points, force=force)
        lines = (tmp_path / "b" / "runs.jsonl").read_text().splitlines()
        assert len(lines) == count  # engines of the same rounds are measured together
    run_all(*both, force=True)
    lines = (tmp_path / "b" / "runs.jsonl").read_text().splitlines()
    assert (len(lines), len({json.loads(line)["id"] for line in lines})) == (5, 2)


@pytest.mark.parametrize("free", [2**40, 0], ids=["together", "in pairs with the first"])
def test_engines_run_in_the_same_rounds(point, monkeypatch, free):
    ran, run = [], runner.Decoder.run

    def logged(self, *args, **options):
        output = yield from run(self, *args, **options)
        ran.append((output.engine, output.kept_kv_bytes))
        return output

    monkeypatch.setattr(runner.Decoder, "run", logged)
    memory = SimpleNamespace(virtual_memory=lambda: SimpleNamespace(available=free))
    monkeypatch.setattr(preflight, "psutil", memory)
    outcome = run_all(*(point(f"engine={engine}") for engine in ("torch", "transformers")))
    rows = [record.to_row() for record in outcome.records.values()]
    sides = {(name, size) for name in ("torch", "transformers") for size in (7680, 3840)}
    assert set(ran[-8:-4]) == set(ran[-4:]) == sides  # two rounds
    assert [row["engine"] for row in rows] == ["torch", "transformers"]
    assert rows[1]["reference_engine"] == "torch"
    each = rows[1]["full"]
    assert each["over_reference_low"] <= each["over_reference"] <= each["over_reference_high"]
    if free:
        assert rows[0]["full"]["over_reference"] == 1
        assert rows[0]["over_reference"] == pytest.approx(rows[0]["measured_speedup"])


def test_points_whose_rounds_fail_are_timed_alone(point, monkeypatch):
    real = benchmark.measure_units

    def measure(opened, *args):
        measured = real(opened, *args)
        if len(opened) > 1:
            raise RunError("out of memory")
        return measured

    monkeypatch.setattr(benchmark, "measure_units", measure)
    outcome = run_all(*(point(f"engine={engine}") for engine in ("torch", "transformers")))
    outcome.check()
    for record in outcome.records.values():
        assert len(record.pairs.units) == paired_timing.UNITS


def test_engines_that_do_not_fit_into_memory_together_are_timed_with_the_first_alone(
    point, monkeypatch
):
    monkeypatch.setattr(jobs, "fit_into_memory", lambda points: False)
    opened, real = [], benchmark.measure_units

    def measure(pairs, *args):
        opened.append(len(pairs))
        return real(pairs, *args)

    monkeypatch.setattr(benchmark, "measure_units", measure)
    run_all(*(point(f"engine={name}") for name in ("torch", "transformers", "auto")))
    assert opened == [1, 2, 2]


def test_an_engine_that_fails_does_not_stop_the_others(point, monkeypatch):
    real = benchmark.prepare_run

    def prepare(point, *args):
        if point.config.engine.name == "transformers":
            raise RunError("no")
        return real(point, *args)

    monkeypatch.setattr(benchmark, "prepare_run", prepare)
    points = [point(f"engine={name}") for name in ("torch", "transformers")]
    outcome = run_all(*points)
    assert [record.engine for record in outcome.records.values()] == ["torch", None]
    assert outcome.failures == ["unified ratio 2 engine transformers: no"]
    again = run_all(*points, force=False)
    assert len(again.failures) == 1  # the failed point alone ran again


def test_a_refused_point_is_stored_as_one_of_a_benchmark(point):
    refused = point("strategy=early_exit", by=compose_unvalidated)
    records = run_all(point("ratio=2"), refused).records
    assert [record.status for record in records.values()] == ["done", "n/a"]
    assert [record.command for record in records.values()] == ["bench", "bench"]
    assert records[refused.identity("bench")].task is None


def test_the_fastest_way_to_read_counts(monkeypatch):
    clock = iter([0.0, 3.0, 10.0, 12.0] + [20.0, 25.0] * 4)
    monkeypatch.setattr(paired_timing, "READ_BYTES", 2**16)
    monkeypatch.setattr(paired_timing, "now", lambda device: next(clock))
    assert bandwidth_meter(torch.device("cpu"))() == 2**15


def test_a_share_above_the_measured_bandwidth_is_left_out(bench, monkeypatch):
    monkeypatch.setattr(paired_timing, "bandwidth_meter", lambda device: lambda: 1.0)
    row = bench("ratio=2")
    assert "bandwidth_share" not in row and row["step_bytes"] > 0


def test_a_batch_that_does_not_fit_is_halved(bench, limit_memory):
    limit_memory()
    row = bench()
    assert row["timed_batch_size"] == 1
    assert row["step_bytes"] == step_bytes(3, batch_size=1)
    warning = next(warning for warning in row["warnings"] if "did not fit" in warning)
    assert all(text in warning for text in ("unified", "batch_size=2", "batch_size=1"))


def test_the_bytes_of_stages_are_a_mean_over_their_steps(bench):
    row = bench("ratio=2", "strategy=skip_decode", "strategy.horizon=4")
    new_tokens = row["timed_new_tokens"]
    stages = [Stage(0, tuple(row["kept_layers"])), *(Stage(**one) for one in row["later_stages"])]
    depths = [(count, len(kept)) for count, kept in step_counts(stages, new_tokens - 1)]
    assert sum(count > 0 for count, _ in depths) > 1
    read = [count * step_bytes(depth, new_tokens=new_tokens) for count, depth in depths]
    assert row["step_bytes"] == pytest.approx(sum(read) / (new_tokens - 1))


def test_drafts_are_no_steps_of_their_own(bench):
    row = bench("decoding.draft_tokens=2", "batch_size=1")
    assert row["full"]["linear_backend"] == row["linear_backend"]
    assert row["pairs"]["strategy"]["linear_backend"] == row["linear_backend"]
    assert (row["engine"], row["full"]["engine"]) == ("speculative", "torch")
    assert 0 <= row["acceptance_rate"] <= 1
    assert not {"step_bytes", "bandwidth_share"} & row.keys()
    assert row["full"]["step_bytes"] > 0
