import json

import pytest
from report_rows import ENVIRONMENT

from ulskip_cli.core.config import compose
from ulskip_cli.core.model_metadata import read_metadata
from ulskip_cli.export.card import matching_records, source_license
from ulskip_cli.strategies.plan import make_plan

TRAINING = "with skipping"


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


def test_the_newest_row_of_a_task_counts_and_none_of_another_schedule(tmp_path, config, row):
    changes = [
        {"kept_layers": [0, 11]},
        {"num_layers": 30},
        {"prompt_layers": "kept"},
        {"training": "otherwise"},
        {"draft_tokens": 4},
        {"strategy_options": {"unit": "attention"}},
        {"engine": "llama_cpp", "engine_weights": "q4_0"},
        {"engine": "openvino", "engine_weights": None},
        {"status": "failed"},
        {"config": {"model": {"path": "other"}}},
        {"config": {"model": {"dtype": "bfloat16"}}},
        {"later_stages": [{"first_step": 3, "kept_layers": [0, 11]}]},
        {"id": "new", "finished_at": "2026-02-01"},
        {},
        {"id": "other", "batch_size": 1},
    ]
    rows = [{**row, "id": str(change), **change} for change in changes]
    assert found(tmp_path, config, *rows) == ["other", "new"]


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
