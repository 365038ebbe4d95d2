import json
from dataclasses import replace

import pytest

from ulskip_cli.core.errors import UsageError
from ulskip_cli.experiments.record import read
from ulskip_cli.experiments.rescore import ExtraMetrics, find_runs, rescore, score_file
from ulskip_cli.experiments.results import ResultsFolder
from ulskip_cli.tasks.metrics.scores import Scoring

SOURCES = [f"der {animal} schläft heute" for animal in ("Hund", "Kater", "Bär", "Fuchs")]
REFERENCES = [f"the {animal} sleeps here today" for animal in ("dog", "cat", "bear", "fox")]
TASK = {"_target_": "ulskip_cli.tasks.wmt.Wmt", "name": "wmt", "metrics": ["bleu", "chrf"]}


def stored(folder, point, hypotheses, baseline=None):
    lines = zip(SOURCES, REFERENCES, hypotheses, strict=True)
    rows = [
        {"id": str(i), "source": s, "reference": r, "hypothesis": h}
        for i, (s, r, h) in enumerate(lines)
    ]
    (folder / "generations").mkdir(parents=True, exist_ok=True)
    (folder / "generations" / f"{point}.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows)
    )
    row = {
        "id": point,
        "status": "done",
        "strategy": "unified",
        "batch_size": 1,
        "baseline_id": baseline,
        "config": {"task": TASK},
        "num_examples": len(rows),
        "decode_loss": 1.5,
        "measured_speedup": 1.6,
        "measured_speedup_low": 1.5,
        "measured_speedup_high": 1.7,
    }
    ResultsFolder(folder).append(
        rescore(ResultsFolder(folder), read(json.dumps(row)), ExtraMetrics()).record
    )


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "results" / "mine"
    stored(path, "aaaaaaaaaaaa", [text.replace("today", "now") for text in REFERENCES])
    stored(
        path, "bbbbbbbbbbbb", [text.replace("here", "there") for text in REFERENCES], "aaaaaaaaaaaa"
    )
    return path


def test_the_same_metrics_give_the_same_numbers(folder):
    for where, record in find_runs(str(folder), folder.parent):
        again = rescore(where, record, ExtraMetrics())
        assert (again.added, again.changed) == ([], {})
        assert again.record == record


def test_a_metric_is_added_and_nothing_else_changes(folder):
    before = {record.id: record.to_row() for record in ResultsFolder(folder).records()}
    for where, record in find_runs(str(folder), folder.parent):
        again = rescore(where, record, ExtraMetrics(["ter", "rouge"]))
        assert again.added == ["ter", "rouge1", "rouge2", "rougeL", "rougeLsum"]
        assert again.changed == {}
        again.save()
    for row in (record.to_row() for record in ResultsFolder(folder).records()):
        added = {"ter", "rouge1", "rouge2", "rougeL", "rougeLsum"}
        old = before[row["id"]]
        assert {key: row[key] for key in old if key not in ("signatures", "vs_baseline")} == {
            key: old[key] for key in old if key not in ("signatures", "vs_baseline")
        }
        assert old["signatures"].items() <= row["signatures"].items()
        assert set(row) - set(old) == added
    compared = next(
        record for record in ResultsFolder(folder).records() if record.id == "bbbbbbbbbbbb"
    ).to_row()["vs_baseline"]
    assert {"bleu", "chrf", "ter", "rougeLsum"} <= compared.keys()


def test_a_run_is_found_by_its_id_its_file_or_its_folder(folder):
    results = folder.parent
    for target in ("bbbbbbbbbbbb", str(folder / "generations" / "bbbbbbbbbbbb.jsonl")):
        assert [record.id for _, record in find_runs(target, results)] == ["bbbbbbbbbbbb"]
    assert len(find_runs(str(folder), results)) == 2


def test_a_value_that_differs_is_told(folder):
    where, record = find_runs("aaaaaaaaaaaa", folder.parent)[0]
    other = read(json.dumps({**record.to_row(), "bleu": 1.0}))
    assert rescore(where, other, ExtraMetrics()).changed["bleu"][0] == 1.0


def test_a_row_without_its_task_cannot_be_scored_again(folder):
    where, record = find_runs("aaaaaaaaaaaa", folder.parent)[0]
    with pytest.raises(UsageError, match="aaaaaaaaaaaa"):
        rescore(where, record.replace(config={}), ExtraMetrics())


@pytest.mark.parametrize("num_left", [0, 3])
@pytest.mark.parametrize("target", ["id", "file", "folder"])
def test_incomplete_generations_are_an_error_and_write_no_row(folder, ulskip, num_left, target):
    file, rows = folder / "generations" / "bbbbbbbbbbbb.jsonl", (folder / "runs.jsonl").read_bytes()
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:num_left]))
    where = {"id": "bbbbbbbbbbbb", "file": file, "folder": folder}[target]
    code, _, err = ulskip("score", where, "--metric", "ter", "--results-dir", folder.parent)
    assert code == 2
    assert all(text in err for text in (str(file), "expected 4", f"got {num_left}"))
    assert (folder / "runs.jsonl").read_bytes() == rows


def test_incomplete_generations_of_the_baseline_are_an_error(folder):
    file = folder / "generations" / "aaaaaaaaaaaa.jsonl"
    file.write_text(file.read_text()[:-20])  # the last line is cut in the middle
    ((where, record),) = find_runs("bbbbbbbbbbbb", folder.parent)
    with pytest.raises(UsageError, match=rf"{file.name}.* 4\b"):
        rescore(where, record, ExtraMetrics(["ter"]))


def test_a_missing_file_of_answers_is_an_error_and_writes_no_row(folder, ulskip):
    file, rows = folder / "generations" / "bbbbbbbbbbbb.jsonl", (folder / "runs.jsonl").read_bytes()
    file.unlink()
    code, _, err = ulskip("score", folder, "--metric", "ter")
    assert (code, str(file) in err) == (2, True)
    assert (folder / "runs.jsonl").read_bytes() == rows


def test_runs_that_were_never_scored_need_no_answers(folder, ulskip):
    ResultsFolder(folder).append(
        read(
            json.dumps(
                {"id": "cccccccccccc", "status": "done", "strategy": "unified", "batch_size": 1}
            )
        )
    )
    code, out, err = ulskip("score", folder, "--metric", "ter", "--json")
    assert code == 0, err
    assert len(json.loads(out)["rows"]) == 2


def test_a_run_is_scored_without_a_comparison_if_its_baseline_has_no_generations(folder):
    (folder / "generations" / "aaaaaaaaaaaa.jsonl").unlink()
    ((where, record),) = find_runs("bbbbbbbbbbbb", folder.parent)
    assert rescore(where, record, ExtraMetrics(["ter"])).added == ["ter"]


def test_no_file_outside_of_the_folder_is_read(folder, ulskip):
    (folder / "generations" / "aaaaaaaaaaaa.jsonl").rename(folder.parent / "secret.jsonl")
    line = (folder / "runs.jsonl").read_text().splitlines()[0]
    (folder / "runs.jsonl").write_text(line.replace("aaaaaaaaaaaa", "../../secret"))
    code, _, err = ulskip("score", folder)
    assert (code, str(folder) in err) == (2, True)


def test_a_row_cannot_name_a_class_to_import(folder, tmp_path, monkeypatch):
    (tmp_path / "planted.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    ((where, record),) = find_runs("aaaaaaaaaaaa", folder.parent)
    planted = {**record.to_row(), "config": {"task": {**TASK, "_target_": "planted.Thing"}}}
    assert rescore(where, read(json.dumps(planted)), ExtraMetrics()).changed == {}
    planted["config"]["task"]["name"] = "mine"
    with pytest.raises(UsageError, match="mine"):
        rescore(where, read(json.dumps(planted)), ExtraMetrics())


def test_a_target_without_runs_is_refused(folder):
    for target in ("nowhere", "cccccccccccc"):
        with pytest.raises(UsageError, match=target):
            find_runs(target, folder.parent)
    (folder / "generations" / "aaaaaaaaaaaa.jsonl").unlink()
    with pytest.raises(UsageError, match="aaaaaaaaaaaa"):
        find_runs("aaaaaaaaaaaa", folder.parent)


def test_any_file_with_hypotheses_and_references(tmp_path):
    file = tmp_path / "mine.jsonl"
    file.write_text(
        '{"hypothesis": "a b", "reference": "a b"}\n{"hypothesis": "x", "reference": "y"}\n'
    )
    assert score_file(file, ExtraMetrics(["exact_match"])).values == {"exact_match": 50.0}
    file.write_text('{"hypothesis": "a b"}\n')
    with pytest.raises(UsageError, match=r"line 1.* hypothesis .*reference"):
        score_file(file, ExtraMetrics(["exact_match"]))
    file.write_text('{"hypothesis": "a", "reference": "b"}\n')
    with pytest.raises(UsageError, match="--metric"):
        score_file(file, ExtraMetrics())


@pytest.mark.parametrize("metric", ["comet", "bertscore"])
def test_a_row_does_not_choose_the_model_that_scores_it(metric):
    scoring = Scoring((metric,), **{f"{metric}_model": "/tmp/planted.ckpt"})
    with pytest.raises(UsageError, match=f"expected --{metric}-model for a row with"):
        ExtraMetrics().beside(scoring)
    assert ExtraMetrics(**{f"{metric}_model": "mine"}).beside(scoring) == Scoring(
        (metric,), **{f"{metric}_model": "mine"}
    )
    assert ExtraMetrics(["bleu"]).beside(replace(scoring, metrics=())) == Scoring(("bleu",))
