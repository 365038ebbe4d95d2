"""Smaller models and drafts, which a sweep compares with the full model of its grid."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest

from ulskip_cli.core.errors import NotApplicable, UsageError
from ulskip_cli.experiments.preflight import resolve
from ulskip_cli.experiments.runner import Session, run_point
from ulskip_cli.experiments.sweep.grid import points
from ulskip_cli.experiments.workload import check_same_tokens

QUICK = [
    "limit=10",
    "decoding.max_new_tokens=8",
    "speed.pairs=2",
    "speed.warmup=0",
    "speed.new_tokens=4",
]


@pytest.fixture(scope="module")
def sibling(tmp_path_factory):
    """Export a checkpoint with every second layer of the bundled model."""
    from ulskip_cli.cli.app import invoke

    folder = tmp_path_factory.mktemp("sibling") / "half"
    assert (
        invoke(
            [
                "export",
                "model=tiny",
                "ratio=2",
                "prompt_layers=kept",
                "--no-check",
                "--to",
                str(folder),
            ]
        )
        == 0
    )
    return folder


def ids(configs):
    return [config.identity for config in configs]


def test_alternatives_come_behind_the_points_of_a_grid_whose_ids_they_do_not_change(sibling):
    grid = [
        "model=tiny",
        "engine=torch,transformers",
        "strategy=full,unified",
        "baseline_engine=torch",
    ]
    plain = points(grid)
    found = points(
        [*grid, f"alternatives.models=[{sibling}]", "alternatives.draft_tokens=[4,auto]"]
    )
    assert ids(found)[: len(plain)] == ids(plain)
    drafts, smaller = (
        [one for one in found[4:] if bool(one.baseline_model) is wanted] for wanted in (False, True)
    )
    assert [(one.decoding.draft_tokens, one.engine.name, one.strategy.name) for one in drafts] == [
        (4, "torch", "unified"),
        ("auto", "torch", "unified"),
    ]
    assert [(one.engine.name, one.strategy.name, one.model.path) for one in smaller] == [
        ("torch", "full", str(sibling)),
        ("transformers", "full", str(sibling)),
    ]
    baselines = {
        resolve(one).baseline.run_id
        for one in found
        if one.strategy.name == "unified" or one.baseline_model
    }
    assert len(baselines) == 1


def test_a_smaller_model_is_compared_with_the_row_of_the_full_model(sibling, tmp_path):
    grid = [
        "model=tiny",
        "strategy=unified",
        "ratio=2,3",
        "model.dtype=float32",
        f"alternatives.models=[{sibling}]",
    ]
    *_, config = points([*grid, *QUICK, f"results_dir={tmp_path}"])
    assert (
        config.model.dtype == "float32"
        and config.ratio == 1
        and config.baseline_model.name == "tiny"
    )
    full, row = (one.to_row() for one in run_point(resolve(config), Session()))
    assert (full["model"], row["model"], row["baseline_model"]) == ("tiny", str(sibling), "tiny")
    assert (row["num_layers"], full["num_layers"]) == (6, 12) and row["baseline_id"] == full["id"]
    assert row["vs_baseline"]["bleu"]["full"] == full["bleu"] and "predicted_speedup" not in row
    tokens = {side: one["generated_tokens"] for side, one in row["pairs"].items()}
    assert tokens["full"] == tokens["strategy"] and row["measured_speedup"] > 0
    other = config.replace(baseline_model=None)
    assert resolve(other).run_id != row["id"] and resolve(config).run_id == row["id"]


def test_a_model_with_another_vocabulary_is_not_applicable(ulskip, model_folder, tmp_path):
    grid = [
        "model=tiny",
        "engine=torch",
        "strategy=unified",
        "ratio=2,3",
        f"alternatives.models=[{model_folder}]",
    ]
    code, _, err = ulskip("sweep", *grid, *QUICK, f"results_dir={tmp_path}")
    assert code == 0, err
    rows = [
        json.loads(line) for line in (tmp_path / "default" / "runs.jsonl").read_text().splitlines()
    ]
    (row,) = [one for one in rows if one["model"] == str(model_folder)]
    assert (
        row["status"] == "n/a" and "vocabulary" in row["reason"] and row["baseline_model"] == "tiny"
    )


def test_prompts_must_be_the_same_token_ids(point):
    _, workload, _ = point()
    check_same_tokens(workload, workload)
    with pytest.raises(NotApplicable, match="prompts"):
        check_same_tokens(workload, replace(workload, encoded=workload.encoded[1:]))
    with pytest.raises(NotApplicable, match="vocabulary"):
        check_same_tokens(
            workload, replace(workload, tokenizer=SimpleNamespace(get_vocab=lambda: {"other": 0}))
        )


@pytest.mark.parametrize("name", ["tinny", "random", "", "no/such/folder"])
def test_models_that_cannot_be_used_end_the_command(ulskip, name):
    code, _, err = ulskip(
        "sweep", "model=tiny", "ratio=2,3", f"alternatives.models=['{name}']", "--dry-run"
    )
    assert code == 2 and len(err.strip().splitlines()) == 1 and "alternatives.models" in err


def test_a_folder_without_a_tokenizer_ends_the_command(ulskip, sibling, tmp_path):
    for name in ("config.json", "model.safetensors"):
        shutil.copy(sibling / name, tmp_path / name)
    code, _, err = ulskip(
        "sweep", "model=tiny", "ratio=2,3", f"alternatives.models=[{tmp_path}]", "--dry-run"
    )
    assert code == 2 and len(err.strip().splitlines()) == 1 and "tokenizer" in err


@pytest.mark.parametrize("command", ["run", "bench"])
def test_other_commands_refuse_other_models(ulskip, sibling, command):
    code, _, err = ulskip(command, "model=tiny", "ratio=2", f"alternatives.models=[{sibling}]")
    assert code == 2 and "alternatives.models" in err


def test_a_wrong_draft_length_is_refused():
    with pytest.raises(UsageError, match=r"alternatives\.draft_tokens.* each a whole number.*x"):
        points(["ratio=2,3", "alternatives.draft_tokens=[x]"])


@pytest.mark.parametrize("engine", ["torch", "auto"])
def test_drafts_are_timed_against_the_full_model_and_change_no_answer(tmp_path, engine):
    grid = [
        "model=tiny",
        f"engine={engine}",
        "baseline_engine=torch",
        "strategy=unified",
        "ratio=2",
        "model.dtype=float32",
    ]
    *_, config = points(
        [*grid, *QUICK, f"results_dir={tmp_path}", "alternatives.draft_tokens=[2]", "seed=1,2"]
    )
    full, row = (one.to_row() for one in run_point(resolve(config), Session()))
    assert (full["engine"], row["engine"], row["draft_tokens"]) == ("torch", "speculative", 2)
    assert (
        row["bleu"] == full["bleu"]
        and row["measured_speedup"] > 0
        and row["baseline_id"] == full["id"]
    )
