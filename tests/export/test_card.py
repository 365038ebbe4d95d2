import json
from types import SimpleNamespace

import pytest

from ulskip_cli.core.config import compose
from ulskip_cli.core.model_metadata import read_metadata
from ulskip_cli.experiments.record import read
from ulskip_cli.export.card import CardFacts, matching_records, model_card, source_license
from ulskip_cli.strategies.plan import make_plan

TRAINING = "with skipping"
ENVIRONMENT = {
    "ulskip": "0",
    "packages": {"torch": "2", "transformers": "5"},
    "accelerator": None,
    "processor": "p",
    "threads": 2,
    "instruction_set": "AVX2",
}


@pytest.fixture
def config():
    return compose(["ratio=2"])


@pytest.fixture
def row(config):
    plan = make_plan(config, read_metadata(config.model))
    return {
        "id": "a",
        "finished_at": "2026-01-01",
        "task": "wmt",
        "pair": "de-en",
        "batch_size": 8,
        "decoding": "greedy",
        "num_layers": 12,
        "kept_layers": list(plan.kept_layers),
        "prompt_layers": "all",
        "training": TRAINING,
        "strategy": "unified",
        "layer_ratio": 2.0,
        "environment": ENVIRONMENT,
        "config": config.recorded(),
    }


def found(tmp_path, config, *rows):
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "runs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    plan = make_plan(config, read_metadata(config.model))
    ids = [record.id for record in matching_records(tmp_path, config.model, plan, TRAINING)]
    assert ids == [
        record.id for record in matching_records(tmp_path / "one", config.model, plan, TRAINING)
    ]
    return ids


def test_the_newest_row_of_a_task_counts(tmp_path, config, row):
    rows = [
        {**row, "id": "new", "finished_at": "2026-02-01"},
        row,
        {**row, "id": "other", "batch_size": 1},
    ]
    assert found(tmp_path, config, *rows) == ["other", "new"]


@pytest.mark.parametrize(
    "change",
    [
        {"kept_layers": [0, 11]},
        {"num_layers": 30},
        {"prompt_layers": "kept"},
        {"training": "otherwise"},
        {"draft_tokens": 4},
        {"unit": "attention"},
        {"engine": "llama_cpp", "engine_weights": "q4_0"},
        {"engine": "openvino", "engine_weights": None},
        {"status": "failed"},
        {"status": "n/a"},
        {"later_stages": [{"first_step": 3, "kept_layers": [0, 11]}]},
    ],
    ids=str,
)
def test_rows_of_another_schedule_do_not_count(tmp_path, config, row, change):
    assert found(tmp_path, config, {**row, **change}) == []


def test_rows_that_were_timed_against_another_model_or_engine_do_not_count(tmp_path, config, row):
    others = {"other": "transformers", "same": "torch"}
    rows = [
        {
            **row,
            "id": name,
            "task": name,
            "engine": "torch",
            "config": {**row["config"], "baseline_engine": engine},
        }
        for name, engine in others.items()
    ]
    assert found(tmp_path, config, *rows) == ["same"]


def test_a_speedup_of_too_few_pairs_states_its_coverage(config, row):
    plan = make_plan(config, read_metadata(config.model))
    point = SimpleNamespace(
        config=config,
        plan=plan,
        model_name="tiny",
        is_pair=False,
        results="results",
        dtype=None,
        made_by="a command",
    )
    timed = {
        "measured_speedup": 1.8,
        "measured_speedup_low": 1.7,
        "measured_speedup_high": 1.9,
        "dtype": "float32",
        "model": "m",
    }
    rows = [
        read(json.dumps({**row, **timed, "speedup_interval_coverage": coverage}))
        for coverage in (0.75, 0.984375, None)
    ]
    text = str(model_card(point, CardFacts(1, 1, "none", TRAINING, True, None, None, rows)))
    assert [line.split(" | ")[6] for line in text.splitlines() if "`a`" in line] == [
        "1.70-1.90 (75%)",
        "1.70-1.90",
        "1.70-1.90",
    ]


@pytest.mark.parametrize(
    ("key", "value"),
    [("path", "other"), ("dtype", "bfloat16"), ("adapter", "x"), ("revision", "r")],
)
def test_rows_of_another_model_do_not_count(tmp_path, config, row, key, value):
    changed = {**row["config"], "model": {**row["config"].get("model", {}), key: value}}
    assert found(tmp_path, config, {**row, "config": changed}) == []


def test_a_missing_folder_has_no_rows(tmp_path, config):
    plan = make_plan(config, read_metadata(config.model))
    assert matching_records(tmp_path / "nowhere", config.model, plan, TRAINING) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("---\ntags:\n- a\nlicense: apache-2.0\n---\n# Model", "apache-2.0"),
        ("---\nlicense: [mit]\n---\n", None),
        ("---\nlicense: {\n---\n", None),
        ("# No metadata", None),
        ("---\nlicense: caf\xe9\n---\n", None),
        (None, None),
    ],
)
def test_the_license_comes_from_the_sources_card(tmp_path, text, expected):
    if text is not None:
        (tmp_path / "README.md").write_text(text, "latin-1")
    assert source_license(tmp_path) == expected


@pytest.mark.parametrize("path", ["~nosuchuser/x", "a\0b", "", "x" * 5000])
def test_a_row_with_an_impossible_path_does_not_count(tmp_path, config, row, path):
    changed = {**row["config"], "model": {**row["config"].get("model", {}), "path": path}}
    assert found(tmp_path, config, {**row, "config": changed}) == []
