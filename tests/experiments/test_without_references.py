"""Prompts without references: a run is scored by the agreement with the full model alone."""

import pytest
from report_rows import stored_rows

from ulskip_cli.core.config import compose, compose_training, compose_tuning
from ulskip_cli.core.errors import UsageError
from ulskip_cli.experiments.point import resolve, resolve_prompts
from ulskip_cli.training.preflight import check_trainable
from ulskip_cli.tuning import divide


@pytest.fixture
def prompts(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("".join(f"the cat {i}\n" for i in range(20)))
    return ["task=jsonl", f"task.file={file}"]


def test_a_run_is_scored_by_agreement(ulskip, overrides, prompts, tmp_path):
    code, out, err = ulskip("run", "ratio=2", *prompts, *overrides)
    assert code == 0, err
    sentence = out.splitlines()[0]
    assert "agrees with" in sentence and "no references" in sentence
    assert "agree-" in out and "decode loss" not in out and "R-L" not in out
    kept = stored_rows(tmp_path / "default")[1]
    assert 0 <= kept["agreement"] <= 1
    absent = {"rougeL", "decode_loss", "length_ratio", "num_truncated_references"}
    assert not absent & kept.keys()
    assert kept["vs_baseline"] == {} and kept["degenerate"]
    assert ulskip("score", tmp_path / "default", "--metric", "chrf")[0] == 0
    assert ulskip("report", tmp_path / "default", "--html")[0] == 0
    table = (tmp_path / "default" / "table.md").read_text()
    assert "agree-ment".replace("-", "") in table.replace("-", "") and "chrF" not in table


@pytest.mark.parametrize("fitted", ["strategy=early_exit", "correction=patch"])
def test_what_is_fitted_on_own_answers_needs_none(overrides, prompts, fitted):
    point = resolve(compose([*overrides, *prompts, fitted, "limit=5"], command="run"))
    assert len(point.held_out.examples) == 15


def test_what_references_decide_requires_them(model_folder, prompts, tmp_path):
    words = [*prompts, f"model.path={model_folder}", f"output={tmp_path}/out"]
    with pytest.raises(UsageError, match=r"train\.responses=reference requires references"):
        check_trainable(compose_training(words))
    check_trainable(compose_training([*words, "train.responses=own"]))
    config = compose_tuning(["speedup=2", *words[:-1]])
    with pytest.raises(UsageError, match="tune` requires references"):
        divide(config)
    for more, named in (
        (["answers=false"], "answers=false"),
        (["strategy=search", "limit=5"], "strategy=search"),
    ):
        with pytest.raises(UsageError, match=f"{named} requires references"):
            resolve(compose([*words[:-1], *more], command="run"))


def test_a_prompt_is_calibrated_on_other_data(prompts, model_folder, tmp_path):
    file = tmp_path / "held_out.jsonl"
    file.write_text('{"prompt": "a", "reference": "b"}\n')
    words = [f"model.path={model_folder}", "task=jsonl", "correction=patch"]
    words.append(f"calibration.task={{file: {file}}}")
    point = resolve_prompts(compose(words, command="generate"), "the cat")
    assert [example.source for example in point.data.examples] == ["the cat"]
    assert [example.reference for example in point.held_out.examples] == ["b"]
