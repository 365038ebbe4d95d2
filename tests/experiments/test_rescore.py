import json

import pytest
from report_rows import configured

from ulskip_cli.core.config import compose
from ulskip_cli.core.errors import UsageError
from ulskip_cli.experiments.record import read
from ulskip_cli.experiments.rescore import find_runs, rescore
from ulskip_cli.experiments.results import ResultsFolder

SOURCES = [f"der {animal} schläft heute" for animal in ("Hund", "Kater", "Bär", "Fuchs")]
REFERENCES = [f"the {animal} sleeps here today" for animal in ("dog", "cat", "bear", "fox")]
TASK = {"name": "wmt", "metrics": ["bleu", "chrf"]}
CONFIG = {**compose([]).recorded(), "task": TASK}
POINT = {"config": CONFIG, "decode_loss": 1.5}
FULL, RUN = "a" * 12, "b" * 12


def store(path, run_id, hypotheses, baseline=None):
    folder = ResultsFolder(path)
    texts = zip(SOURCES, REFERENCES, hypotheses, strict=True)
    answers = [{"source": s, "reference": r, "hypothesis": h} for s, r, h in texts]
    folder.save_generations(run_id, answers)
    row = {**POINT, "id": run_id, "baseline_id": baseline, "num_examples": len(answers)}
    folder.append(rescore(folder, read(json.dumps(row))).record)


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "results" / "mine"
    store(path, FULL, [text.replace("today", "now") for text in REFERENCES])
    store(path, RUN, [text.replace("here", "there") for text in REFERENCES], FULL)
    return path


@pytest.fixture
def run(folder):
    where = ResultsFolder(folder)
    return where, find_runs(where)[1]


def answers_of(folder, run_id):
    return folder / "generations" / f"{run_id}.jsonl"


@pytest.mark.parametrize("num_left", [None, 0, 3])
def test_incomplete_answers_are_an_error_and_write_no_row(folder, ulskip, num_left):
    file, rows = answers_of(folder, RUN), (folder / "runs.jsonl").read_bytes()
    score = ["score", folder, "--metric", "exact_match"]
    lines = file.read_text().splitlines(keepends=True)
    file.unlink() if num_left is None else file.write_text("".join(lines[:num_left]))
    code, _, err = ulskip(*score)
    expected = "expected one JSON object" if num_left == 0 else "expected 4"
    assert (code, str(file) in err, expected in err) == (2, True, True)
    assert (folder / "runs.jsonl").read_bytes() == rows
    file.write_text("".join(lines))
    code, out, _ = ulskip(*score)
    assert code == 0 and "of 2 runs are unchanged" in out


def test_a_baseline_needs_all_answers_or_none(folder, run):
    file = answers_of(folder, FULL)
    file.write_text(file.read_text()[:-20])  # the last line is cut in the middle
    with pytest.raises(UsageError, match=rf"{file.name}.* 4\b"):
        rescore(*run, ["exact_match"])
    file.unlink()
    assert rescore(*run, ["exact_match"]).added == ["exact_match"]


def test_runs_that_were_never_scored_need_no_answers(folder):
    ResultsFolder(folder).append(read(json.dumps({**POINT, "id": "c" * 12})))
    assert [record.id for record in find_runs(ResultsFolder(folder))] == [FULL, RUN]


def test_a_row_names_no_class_to_import(tmp_path, monkeypatch, run):
    (tmp_path / "planted.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    folder, record = run
    for task in ({**TASK, "_target_": "planted.Thing"}, {**TASK, "name": "mine"}):
        planted = configured(record, task=task)
        with pytest.raises(UsageError, match=task["name"]):
            rescore(folder, planted)
    with pytest.raises(UsageError, match="expected a task"):
        rescore(folder, record.replace(command="bench"))


def test_a_changed_score_is_named(run):
    where, record = run
    changed = rescore(where, record.replace(bleu=1.0)).changed
    assert changed == {"bleu": (1.0, record.bleu)}


def test_a_row_does_not_allow_the_code_of_its_answers(tmp_path):
    folder, run_id = ResultsFolder(tmp_path / "mine"), "c" * 12
    task = {"name": "humaneval", "metrics": ["pass_at_1"], "allow_code": True}
    answer = {"source": "def one():", "reference": "x", "test": "assert one() == 1"}
    texts = ("    return 1", "    return 2")
    folder.save_generations(run_id, [{**answer, "hypothesis": text} for text in texts])
    config = {**CONFIG, "task": task}
    row = read(json.dumps({**POINT, "config": config, "id": run_id, "num_examples": 2}))
    with pytest.raises(UsageError, match="--allow-code"):
        rescore(folder, row)
    scored = rescore(folder, row, allow_code=True)
    assert (scored.added, scored.record.value("pass_at_1")) == (["pass_at_1"], 50.0)


def test_a_row_of_a_users_own_task_needs_the_folder_of_its_file(folder, ulskip, tmp_path):
    file = folder / "runs.jsonl"
    file.write_text(file.read_text().replace('"name": "wmt"', '"name": "mine"'))
    assert file.read_text().count('"mine"') == 2
    (tmp_path / "configs" / "task").mkdir(parents=True)
    preset = "_target_: ulskip_cli.tasks.wmt.Wmt\nname: mine\n"
    (tmp_path / "configs" / "task" / "mine.yaml").write_text(preset)
    score = ["score", folder, "--metric", "exact_match"]
    code, _, err = ulskip(*score)
    assert (code, "unknown task 'mine'" in err) == (2, True)
    code, out, _ = ulskip(*score, "--config-dir", tmp_path / "configs")
    assert code == 0 and "added: exact_match; the other scores of 2 of 2 runs are" in out
