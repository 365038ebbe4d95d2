import json

import pytest

from ulskip_cli.core import model_metadata
from ulskip_cli.core.config import baseline_config, compose
from ulskip_cli.core.errors import RunError, UsageError
from ulskip_cli.experiments import point as points_module
from ulskip_cli.experiments.describe import describe_schedule
from ulskip_cli.experiments.grid import grid_configs
from ulskip_cli.experiments.ledger import make_jobs
from ulskip_cli.experiments.point import resolve
from ulskip_cli.experiments.record import Record
from ulskip_cli.experiments.settings import settings
from ulskip_cli.tasks.wmt import Wmt


@pytest.fixture
def files(tmp_path):
    """Overrides of a calibrated strategy on nine sentences, a0 to a8; b has nine others."""
    for name in ("a", "b"):
        (tmp_path / name).write_text("".join(f"{name}{i}\n" for i in range(9)))
    source = [f"task.{key}_file={tmp_path}/a" for key in ("source", "reference")]
    return ["task.dataset=files", *source, "strategy=search"]


def test_a_point_has_all_that_follows_from_its_configuration():
    config = compose(["ratio=2", "limit=3"])
    point = resolve(config)
    assert (point.config, len(point.data.examples), point.held_out) == (config, 3, None)
    kept = point.folder.metadata.num_layers, len(point.plan.kept_layers)
    assert (*kept, point.data.task.data) == (12, 6, "sample")
    assert point.baseline.config == baseline_config(config) and point.baseline.baseline is None
    assert point.baseline.plan.keeps_all and point.baseline.id != point.id
    assert point.settings.baseline_id == point.baseline.id
    for without in (["strategy=full"], ["ratio=1"], ["baseline=false"]):
        assert resolve(compose(without)).baseline is None


@pytest.mark.parametrize("task", [["task=wmt"], ["task.pair=en-de"], ["task=cnn_dm"]])
def test_bundled_samples_hold_out_examples_that_no_run_evaluates(task):
    point = resolve(compose([*task, "model=tiny", "strategy=search"]))
    assert point.held_out.examples and point.held_out.task.data == "held_out"
    evaluated = {example.source for example in point.data.task.examples()}
    assert not evaluated & {example.source for example in point.held_out.examples}


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["limit=4", "calibration.examples=3"], ["a4", "a5", "a6"]),
        (["offset=2", "limit=3", "calibration.examples=2"], ["a5", "a6"]),
        (["limit=7", "calibration.task={}"], ["a7", "a8"]),
        (
            ["calibration.task={source_file: DIR/b, reference_file: DIR/b}"],
            [f"b{i}" for i in range(9)],
        ),
    ],
)
def test_held_out_examples_are_not_evaluated(files, tmp_path, overrides, expected):
    point = resolve(compose([*files, *(text.replace("DIR", str(tmp_path)) for text in overrides)]))
    assert [example.source for example in point.held_out.examples] == expected
    assert not {example.source for example in point.data.examples} & {*expected}


def test_missing_examples_are_refused(files):
    for overrides in ([], ["calibration.task={}"]):
        with pytest.raises(UsageError, match=r"strategy=search.* limit=N .*9.* calibration\.task="):
            resolve(compose([*files, *overrides]))
    with pytest.raises(UsageError, match=r"to calibrate correction=patch, got none"):
        resolve(compose([*files, "strategy=unified", "correction=patch"]))
    with pytest.raises(UsageError, match=r"offset.*9"):
        resolve(compose([*files, "offset=9"]))
    for strategy in ("strategy=unified", f"strategy=block_influence strategy.scores={[1] * 12}"):
        assert resolve(compose([*files, *strategy.split(maxsplit=1)])).held_out is None


def test_an_identifier_is_a_hash_of_configuration_data_and_weights(files, copied_model, tmp_path):
    def run_id(*overrides):
        return resolve(compose([*files, "limit=5", *overrides])).id

    plain, calibrated = run_id("strategy=unified"), run_id()
    assert plain == run_id("strategy=unified", "name=other")
    assert plain != run_id("strategy=unified", "ratio=3")
    (tmp_path / "a").write_text("".join(f"a{i}\n" for i in range(8)) + "other\n")
    assert plain == run_id("strategy=unified") and calibrated != run_id()
    hf = ["strategy=unified", "model=hf", f"model.path={copied_model}"]
    before = run_id(*hf)
    weights = copied_model / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert run_id(*hf) != before


def test_the_jobs_of_a_sweep_have_the_identifiers_of_single_runs():
    grid = grid_configs(["ratio=2,3", "strategy=unified,top_skip", "limit=4"])
    jobs = {job.id: job for job in make_jobs(grid)}
    single = [resolve(config) for config in grid]
    assert {point.id for point in single} | {single[0].baseline.id} == jobs.keys()
    for point in single:
        assert jobs[point.id].config == point.config
        assert jobs[point.id].baseline_id == point.baseline.id


def test_data_and_model_files_are_read_once_for_many_points(spy):
    examples, others = spy(Wmt, "examples"), ("load_json", "read_headers")
    reads = [examples, *(spy(model_metadata, name) for name in others)]
    grid = grid_configs(["strategy=unified,top_skip", "ratio=2,3,4", "batch_size=1,2", "limit=4"])
    assert len(make_jobs(grid)) == 2 * 3 * 2 + 2
    assert [read.call_count for read in reads] == [1, 2, 1]  # config and generation config
    make_jobs(grid_configs(["ratio=2,3", "limit=4,5"]))
    assert examples.call_count == 1 + 2  # once for each limit


@pytest.mark.parametrize(
    "overrides",
    [
        ["strategy=unified", "ratio=2", "prompt_layers=kept"],
        ["strategy=full", "ratio=3", "prompt_layers=kept"],
        ["strategy=custom", "strategy.layers=[0,11]", "ratio=3"],
        ["strategy=early_exit", "ratio=2"],
    ],
)
def test_a_failed_and_a_finished_row_of_a_point_agree_on_what_was_asked(overrides):
    (job,) = [job for job in make_jobs(grid_configs([*overrides, "batch_size=1"])) if job.requested]
    failed = job.failure_record(RunError("x"))
    finished = Record.joined(job.point.settings, describe_schedule(job.point.plan))
    asked = settings(failed)
    assert asked == {key: value for key, value in settings(finished).items() if key in asked}
    assert (failed.identity, failed.config) == (finished.identity, finished.config)
    assert (failed.dataset, failed.target_speedup) == ("sample", finished.target_speedup)
    assert (failed.status, finished.status) == ("failed", "done")


def test_the_type_that_auto_stands_for_is_part_of_the_identity(copied_model):
    file = copied_model / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"dtype": "bfloat16"}))

    def resolved(*overrides):
        return resolve(compose([f"model.path={copied_model}", "limit=3", "ratio=2", *overrides]))

    auto = resolved()
    stored = [point.settings.config.model.dtype for point in (auto, auto.baseline)]
    assert stored == ["bfloat16"] * 2 and auto.config.model.dtype == "auto"
    assert auto.id == resolved("model.dtype=bfloat16").id
    assert auto.id != resolved("model.dtype=float32").id


def test_rows_of_calibrations_and_fits_in_an_earlier_format_do_not_count(monkeypatch):
    words = (["strategy=search"], ["correction=patch"], ["strategy=unified"])
    configs = [compose(["limit=3", *overrides]) for overrides in words]
    before = [resolve(config).id for config in configs]
    monkeypatch.setattr(points_module, "CALIBRATION", 0)
    changed = [resolve(config).id != old for config, old in zip(configs, before, strict=True)]
    assert changed == [True, True, False]
