import json
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
from report_rows import run_rows, stored_rows

from ulskip_cli.core import environment
from ulskip_cli.core.config import compose
from ulskip_cli.core.errors import RunError
from ulskip_cli.core.model_metadata import ModelMetadata
from ulskip_cli.engines.base import ExitStats
from ulskip_cli.engines.decoder import Decoder
from ulskip_cli.experiments import runner
from ulskip_cli.experiments.describe import describe_schedule
from ulskip_cli.experiments.intervals import UNITS
from ulskip_cli.experiments.point import resolve
from ulskip_cli.experiments.results import ResultsFolder
from ulskip_cli.experiments.runner import Models
from ulskip_cli.strategies.plan import make_plan


@pytest.fixture
def config(overrides):
    return lambda *changes: compose([*overrides, *changes])


def test_a_run_leaves_its_row_and_its_baselines(config, tmp_path):
    rows = run_rows(config("ratio=2"))
    full, half = rows
    assert (full["strategy"], half["strategy"]) == ("full", "unified")
    assert half["kept_layers"] == [0, 2, 5]
    assert (half["target_speedup"], half["layer_ratio"]) == (2.0, 2.0)
    assert 1 < half["predicted_speedup"] < 2
    assert half["measured_speedup_low"] <= half["measured_speedup"] <= half["measured_speedup_high"]
    assert isinstance(half["bleu"], float)
    measured = "decode_loss decode_tokens_per_second total_tokens_per_second end_to_end_speedup"
    measured += " prefill_seconds time_per_output_token_seconds peak_memory_bytes"
    assert all(half[key] > 0 for key in measured.split())
    assert half["kept_kv_bytes"] * 2 == half["prompt_kv_bytes"]
    assert half["vs_baseline"]["bleu"]["full"] == pytest.approx(full["bleu"])
    assert half["config"]["strategy"] == {"name": "unified"}
    assert (half["engine"], half["baseline_id"]) == ("torch", full["id"])
    for side in ("full", "strategy"):
        timed = half["pairs"][side]
        assert (timed["engine"], timed["linear_backend"]) == ("torch", half["linear_backend"])
    assert stored_rows(tmp_path / "default") == rows
    answers = ResultsFolder(tmp_path / "default").generations(half["id"])
    assert sum(len(answer["token_ids"]) for answer in answers) == half["generated_tokens"]


@pytest.mark.parametrize("drafts", ["decoding=self_speculative", "decoding=prompt_lookup"])
def test_a_drafted_run_has_the_full_models_quality_and_a_plain_baseline(config, tmp_path, drafts):
    full, drafted = run_rows(config(drafts, "ratio=2", "batch_size=1"))
    assert (full["engine"], full["draft_tokens"], drafted["engine"]) == ("torch", 0, "torch")
    assert drafted["decode_loss"] == pytest.approx(full["decode_loss"])
    assert drafted["kept_kv_bytes"] == drafted["prompt_kv_bytes"]
    assert drafted["measured_speedup"] > 0 and drafted["predicted_speedup"] is None
    assert 0 <= (drafted["mean_draft_length"] or 0) < 8
    folder = tmp_path / "default" / "generations"
    texts = {(folder / f"{row['id']}.jsonl").read_text() for row in (full, drafted)}
    assert len(texts) == 1


def test_weights_and_baseline_are_used_again(config, spy):
    session, load = Models(), spy(runner, "load")
    first = run_rows(config("ratio=2"), session)
    second = run_rows(config("ratio=3"), session)
    assert load.call_count == 1
    assert first[0] == second[0]


def test_the_order_of_weights_and_texts_changes_nothing(config):
    changes = ["strategy=full", "decoding.stop=[xyz]", "speed.enabled=false"]
    session, asked = Models(), config(*changes)
    session.load(resolve(asked))
    assert run_rows(asked, session)[0]["bleu"] is not None


@pytest.mark.parametrize("strategy", ["unified", "full"])
def test_without_a_baseline_each_round_times_one_decoder_once(config, spy, strategy):
    run = spy(Decoder, "run")
    run_rows(config(f"strategy={strategy}", "baseline=false", "speed.new_tokens=5"))
    timed = [call.args[2].length for call in run.call_args_list if call.args[2].fixed_length]
    assert timed == [5] * (1 + UNITS)  # rounds


def test_a_baseline_is_used_again_on_the_machine_that_measured_it(config, monkeypatch):
    first = run_rows(config("ratio=2"))[0]
    here = environment.machine()
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(environment, "machine", lambda *args: {**here, "processor": "another"})
        other = run_rows(config("ratio=2"))[0]
    assert (other["id"], other["environment"]["processor"]) == (first["id"], "another")
    assert run_rows(config("ratio=3"))[0] == first  # although the other one is newer


@pytest.mark.slow
def test_a_run_imports_only_what_every_run_needs():
    spared = {"nltk", "matplotlib", "datasets", "pandas", "peft", "gguf"}
    code = f"import sys, ulskip_cli.experiments.runner; print({spared} & set(sys.modules))"
    command = [sys.executable, "-W", "ignore", "-c", code]
    assert subprocess.check_output(command, text=True) == "set()\n"


def test_the_depth_of_early_exit_is_that_of_the_timed_pairs(config):
    plan = make_plan(
        config("strategy=early_exit", "strategy.threshold=0.9", "strategy.horizon=4"),
        ModelMetadata(6, None, None),
    )

    def output(**depths):
        exits = ExitStats({int(name[1:]): count for name, count in depths.items()})
        return SimpleNamespace(exits=exits, drafts=None, token_ids=[[1, 2]])

    answers, timed = [output(n3=10), output(n5=10)], [output(n2=1, n4=3)]
    both = describe_schedule(plan, answers, timed)
    assert (both.evaluated_mean_kept_layers, both.mean_kept_layers) == (4, 3.5)
    assert both.layer_ratio == 6 / 3.5
    alone = describe_schedule(plan, answers, [output()])  # pairs that end at their first token
    assert (alone.mean_kept_layers, alone.layer_ratio) == (4, 1.5)


def test_early_exit_is_calibrated_and_tells_where_tokens_left(config, tmp_path):
    overrides = ["strategy=early_exit", "ratio=2", "calibration.examples=6", "batch_size=1"]
    session = Models()
    row = run_rows(config(*overrides), session)[-1]
    assert (row["engine"], row["target_kept_layers"]) == ("torch", 3)
    calibration = row["calibration"]
    assert calibration["options"]["threshold"] > 0 and calibration["options"]["horizon"] >= 1
    assert calibration["notes"]["mean_kept_layers"] == pytest.approx(3, rel=0.02)
    depths = {int(depth): count for depth, count in row["exit_depths"].items()}
    decoded = row["generated_tokens"] - row["num_examples"]
    assert sum(depths.values()) == decoded
    mean = sum(depth * count for depth, count in depths.items()) / decoded
    assert row["evaluated_mean_kept_layers"] == pytest.approx(mean)
    assert 0 < row["exit_check_fraction"] < 1
    assert row["kept_kv_bytes"] == row["prompt_kv_bytes"]
    given = [f"strategy.{key}={value}" for key, value in calibration["options"].items()]
    again = run_rows(config("strategy=early_exit", "ratio=2", "batch_size=1", *given), session)[-1]
    assert again["calibration"] is None
    assert (again["exit_depths"], again["decode_loss"]) == (row["exit_depths"], row["decode_loss"])


def test_weights_that_change_after_a_run_was_prepared_end_it(config):
    point = resolve(config())
    folder = SimpleNamespace(
        fingerprint="another", metadata=point.folder.metadata, model=point.folder.model
    )
    point = replace(point, folder=folder)
    with pytest.raises(RunError, match="weights"):
        runner.run_point(point, Models())


def test_answers_that_are_right_or_wrong_have_a_decode_loss_only_alone(config, tmp_path):
    lines = [{"prompt": "the cat sat", "reference": "on the mat " * n} for n in (1, 40, 200)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    task = ["task=jsonl", f"task.file={tmp_path}/a.jsonl", "task.metrics=[exact_match]"]
    _, row = run_rows(config(*task))
    assert (row["exact_match"], row["decode_loss"]) == (0, None) and row["agreement"] is not None
    row = run_rows(config(*task, "answers=false"))[-1]
    assert row["decode_loss"] > 0 and row["num_truncated_references"] == 1


def test_a_point_may_be_compared_with_the_full_model_in_another_engine(config):
    overrides = ["engine=torch", "baseline_engine=transformers"]
    session = Models()
    full, whole = run_rows(config(*overrides, "ratio=1"), session)
    assert (full["engine"], whole["engine"]) == ("transformers", "torch")
    assert (whole["baseline_id"], whole["bleu"]) == (full["id"], full["bleu"])
    assert whole["measured_speedup"] is not None and whole["predicted_speedup"] is None
    engines = {side: whole["pairs"][side]["engine"] for side in ("full", "strategy")}
    assert engines == {"full": "transformers", "strategy": "torch"}
    assert run_rows(config(*overrides, "ratio=2"), session)[-1]["baseline_id"] == full["id"]
