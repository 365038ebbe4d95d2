import json

import pytest

from ulskip_cli.core import model_metadata
from ulskip_cli.core.config import baseline_config, compose
from ulskip_cli.core.errors import NotApplicable, RunError, UsageError
from ulskip_cli.experiments import preflight
from ulskip_cli.experiments.descriptions import ScheduleProvenance, describe_schedule
from ulskip_cli.experiments.preflight import Resolver, resolve, resolve_benchmark
from ulskip_cli.experiments.record import Record
from ulskip_cli.experiments.sweep.grid import points
from ulskip_cli.experiments.sweep.jobs import make_jobs
from ulskip_cli.tasks.wmt import Wmt

RANDOM = ["model=random", "model.path=llama-12x128"]
EVERY_LAYER = "[0,1,2,3,4,5,6,7,8,9,10,11]"


def test_a_point_has_all_that_follows_from_its_configuration():
    config = compose(["ratio=2", "limit=3"])
    point = resolve(config)
    assert (point.config, len(point.examples), point.metadata.num_layers, point.plan.num_kept) == (
        config,
        3,
        12,
        6,
    )
    assert (point.task.data, point.held_out) == ("sample", None)
    assert point.baseline.config == baseline_config(config) and point.baseline.baseline is None
    assert point.baseline.plan.keeps_all and point.baseline.run_id != point.run_id
    assert point.identity.baseline_id == point.baseline.run_id
    assert resolve(compose(["strategy=search"])).held_out.examples
    for without in (["strategy=full"], ["ratio=1"], ["baseline=false"]):
        assert resolve(compose(without)).baseline is None


def test_held_out_examples_are_part_of_the_identifier_where_they_calibrate(tmp_path):
    def ids(last):
        pairs = [{"prompt": text, "reference": text} for text in ("a", "b", "c", last)]
        (tmp_path / "x.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
        data = ["task=jsonl", f"task.file={tmp_path / 'x.jsonl'}", "task.metrics=[bleu]", "limit=2"]
        return [
            resolve(compose([*data, f"strategy={name}"])).run_id
            for name in ("unified", "block_influence")
        ]

    (unified, measured), (same, other) = ids("d"), ids("e")
    assert unified == same and measured != other


def test_a_sweeps_jobs_have_the_identifiers_of_single_runs():
    grid = points(["ratio=2,3", "strategy=unified,top_skip", "limit=4"])
    jobs = {job.id: job for job in make_jobs(grid)}
    single = [resolve(config) for config in grid]
    assert {point.run_id for point in single} | {single[0].baseline.run_id} == jobs.keys()
    for point in single:
        assert jobs[point.run_id].config == point.config
        assert jobs[point.run_id].baseline == point.baseline.run_id


def test_data_and_model_files_are_read_once_for_many_points(monkeypatch):
    calls = []

    def counted(name, function):
        return lambda *args: calls.append(name) or function(*args)

    monkeypatch.setattr(Wmt, "examples", counted("examples", Wmt.examples))
    monkeypatch.setattr(
        preflight, "read_metadata", counted("metadata", model_metadata.read_metadata)
    )
    monkeypatch.setattr(
        preflight, "fingerprint", counted("fingerprint", model_metadata.fingerprint)
    )
    jobs = make_jobs(
        points(["strategy=unified,top_skip", "ratio=2,3,4", "batch_size=1,2", "limit=4"])
    )
    assert len(jobs) == 2 * 3 * 2 + 2
    assert sorted(calls) == ["examples", "fingerprint", "metadata"]
    make_jobs(points(["ratio=2,3", "limit=4,5"]))
    assert calls.count("examples") == 1 + 2  # once for each limit


def test_data_that_cannot_be_read_are_tried_once(monkeypatch):
    calls = []

    def fails(self):
        calls.append(1)
        raise UsageError("no such file")

    monkeypatch.setattr(Wmt, "examples", fails)
    resolver = Resolver()
    for ratio in (2, 3):
        config = compose([f"ratio={ratio}"])
        with pytest.raises(UsageError, match="no such file"):
            resolver.resolve(config)
        assert resolver.fallback_id(config) == config.identity
    assert calls == [1]


@pytest.mark.parametrize(
    "overrides",
    [
        ["strategy=unified", "ratio=2", "ratio_basis=cost", "prompt_layers=kept"],
        ["strategy=unified", "ratio=2"],
        ["strategy=unified", "ratio=1", "prompt_layers=kept"],
        ["strategy=full", "ratio=3", "prompt_layers=kept"],
        ["strategy=custom", f"strategy.layers={EVERY_LAYER}"],
        ["strategy=custom", "strategy.layers=[0,11]", "ratio=3"],
        ["strategy=early_exit", "ratio=2"],
        ["strategy=skip_decode", "ratio=2"],
    ],
)
def test_a_failed_and_a_finished_row_of_a_point_agree_on_what_was_asked(overrides):
    (job,) = [job for job in make_jobs(points([*overrides, "batch_size=1"])) if job.requested]
    failed = job.failure_record(RunError("x"))
    asked = job.point.identity.replace(prompt_layers=job.point.plan.prompt_layers)
    finished = Record.joined(asked, describe_schedule(job.point.plan, ScheduleProvenance()))
    assert failed.settings() == finished.settings()
    assert failed.dataset == "sample"
    assert (failed.status, finished.status) == ("failed", "done")
    assert failed.target_speedup == finished.target_speedup


def test_an_identifier_is_a_hash_of_configuration_and_data():
    resolver = Resolver()
    config = compose(RANDOM)
    assert resolver.run_id(config, "[]") == resolver.run_id(compose([*RANDOM, "name=other"]), "[]")
    assert resolver.run_id(config, "[]") != resolver.run_id(compose([*RANDOM, "ratio=3"]), "[]")
    assert resolver.run_id(config, "[]") != resolver.run_id(config, "[1]")


def test_an_identifier_depends_on_the_weights(model_folder, tmp_path):
    import shutil

    shutil.copytree(model_folder, tmp_path / "m")
    config = compose(["model=hf", f"model.path={tmp_path / 'm'}"])
    before = resolve(config).run_id
    assert resolve(config).run_id == before
    weights = tmp_path / "m" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert resolve(config).run_id != before


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("speed.enabled=false", "speed.enabled=false"),
        ("baseline=false", "baseline=false"),
        ("speed.new_tokens=600", "speed.prompt_tokens.*512.* 64 \\+ 600"),
        ("memory_budget=3GB", "memory_budget"),
        ("ratio=99", "99"),
        ("decoding.generate_kwargs={lenght_penalty: 1}", "lenght_penalty"),
    ],
)
def test_an_impossible_benchmark_is_refused(override, message):
    with pytest.raises(UsageError, match=message):
        resolve_benchmark(compose([override]))


def test_a_benchmark_does_not_read_its_task():
    config = compose(["task=jsonl"])
    point = resolve_benchmark(config)
    assert (point.task, point.examples, point.baseline) == (None, (), None)
    with pytest.raises(UsageError):
        resolve(config)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["strategy.batch=na"], "batch_size=1 with strategy.batch=na, got 8"),
        (["decoding=beam"], "decoding.num_beams=1"),
        (["decoding=self_speculative"], "decoding.draft_tokens=0"),
        (["decoding.compile=on"], "decoding.compile=auto"),
        (["ratio_basis=latency"], "ratio_basis=latency"),
    ],
)
def test_early_exit_does_not_apply_to_some_points(overrides, message):
    with pytest.raises(NotApplicable, match=message):
        resolve(compose(["strategy=early_exit", *overrides]))


def test_early_exit_needs_texts():
    assert resolve(compose(["strategy=early_exit"])).held_out.examples
    with pytest.raises(NotApplicable, match="early exit"):
        resolve_benchmark(compose(["strategy=early_exit"]))
    with pytest.raises(UsageError, match=r"strategy\.threshold"):
        resolve(compose([*RANDOM, "strategy=early_exit"]))
    assert (
        resolve(compose([*RANDOM, "strategy=early_exit", "strategy.threshold=0.5"])).held_out
        is None
    )
