import json

from hypothesis import given
from hypothesis import strategies as st
from report_rows import small_sweep, write_folder

from ulskip_cli.report import examples, sources


def collected(tmp_path, answers, most=200, rows=None):
    return examples.collect(sources.read([write_folder(tmp_path / "x", rows or small_sweep(), answers)]), most)


def test_texts_are_kept_once_and_named_by_position(tmp_path):
    found = collected(tmp_path, {"unified-2-1": ["a", "b"], "unified-3-1": ["a", "a"]})
    (only,) = found.sets
    assert [[found.texts[i] for i in run["outputs"]] for run in only["runs"]] == [["a", "b"], ["a", "a"]]
    assert len(set(found.texts)) == len(found.texts)
    assert found.texts[only["examples"][1]["source"]] == "Satz 1"
    assert found.note == "wmt · sample · de-en: 2 examples, answers of 2 points."


def test_what_is_left_out_is_told(tmp_path):
    found = collected(tmp_path, {"unified-2-1": ["a"] * 9}, most=4)
    assert "4 of 9 examples" in found.note
    assert "not" not in found.note
    assert "No answers" in collected(tmp_path / "none", {}).note
    assert collected(tmp_path / "zero", {"unified-2-1": ["a"]}, most=0).sets == []


def test_at_most_so_many_points_the_smallest_batches_first(tmp_path, monkeypatch):
    monkeypatch.setattr(examples, "MOST_RUNS", 2)
    rows = small_sweep()
    found = collected(tmp_path, {row["id"]: ["a"] for row in rows}, rows=rows)
    assert len(found.rows) == 2
    assert "answers of 2 of 10 points" in found.note


def test_runs_of_other_examples_are_left_out(tmp_path):
    folder = write_folder(tmp_path / "x", small_sweep(), {"unified-2-1": ["a", "b"], "unified-3-1": ["a"]})
    found = examples.collect(sources.read([folder]))
    assert len(found.sets[0]["runs"]) == 1


@given(st.text())
def test_json_within_a_script_ends_nothing_and_is_read_back(text):
    safe = examples.safe_json({text: text})
    assert not set("<>&\u2028\u2029") & set(safe)
    assert json.loads(safe) == {text: text}
