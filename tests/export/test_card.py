import json

import pytest
from report_rows import ENVIRONMENT, sweep_row

from ulskip_cli.core.config import compose
from ulskip_cli.core.model_metadata import ModelFolder
from ulskip_cli.experiments.results import ResultsFolder
from ulskip_cli.export.card import _quality, matching_records, source_license
from ulskip_cli.export.run import ExportRequest, resolve_export
from ulskip_cli.strategies.plan import make_plan


def test_the_newest_row_of_a_task_counts_and_none_of_another_schedule(tmp_path):
    config, training = compose(["ratio=2"]), "with skipping"
    plan = make_plan(config, ModelFolder(config.model).metadata)
    row = {
        "finished_at": "2026-01-01",
        "num_layers": 12,
        "kept_layers": list(plan.kept_layers),
        "training": training,
        "layer_ratio": 2.0,
        "environment": ENVIRONMENT,
        "config": config.recorded(),
    }

    def asked(*overrides):
        return {"config": compose(["ratio=2", *overrides]).recorded()}

    changes = [
        {"kept_layers": [0, 11]},
        {"num_layers": 30},
        asked("prompt_layers=kept"),
        {"training": "otherwise"},
        asked("decoding.draft_tokens=4"),
        {"config": {**config.recorded(), "engine": {"name": "llama_cpp", "weights": "q4_0"}}},
        {"config": {**config.recorded(), "engine": {"name": "not_installed"}}},
        {"status": "failed"},
        asked("model.path=other"),
        asked("model.dtype=bfloat16"),
        {"later_stages": [{"first_step": 3, "kept_layers": [0, 11]}]},
        {"id": "new", "finished_at": "2026-02-01"},
        {},
        {"id": "other", **asked("batch_size=1")},
    ]
    rows = [{**row, "id": f"row {i}", **change} for i, change in enumerate(changes)]
    lines = [json.dumps(row) + "\n" for row in rows]
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "runs.jsonl").write_text("".join(lines))
    assert len(ResultsFolder(tmp_path / "one").rows()) == len(changes)  # none is refused
    for folder in (tmp_path, tmp_path / "one"):
        to, overrides = ExportRequest(tmp_path / "to"), ["ratio=2", f"results_dir={folder}"]
        point = resolve_export(compose(overrides, command="export --format hf"), to)
        records = matching_records(point, training, None)
        assert [record.id for record in records] == ["other", "new"]


def test_scores_have_intervals_and_those_of_few_examples_are_left_out():
    text = _quality(sweep_row(bleu=28.0, decode_loss=None))
    assert text.startswith("BLEU 28.0 (full 30.0; difference -3.0 to -1.0), chrF 50.0")
    assert _quality(sweep_row(num_examples=2)) == "left out: fewer than 10 examples say little"


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
