import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ulskip_cli.core.config import compose
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.files import append_line, read_jsonl, write_atomic
from ulskip_cli.experiments.record import read
from ulskip_cli.experiments.results import ResultsFolder


def answer(text):
    return {"source": "s", "reference": "r", "hypothesis": text}


def record(run_id, **keys):
    return read(
        json.dumps({"id": run_id, "status": "done", "strategy": "unified", "batch_size": 1, **keys})
    )


def folder_in(tmp_path, name="x"):
    return ResultsFolder.of(compose([f"results_dir={tmp_path}", f"name={name}"]))


def test_saved_runs_are_read_back_the_newest_winning(tmp_path):
    folder, config = folder_in(tmp_path), compose([])
    for bleu in (1, 2):
        folder.save(config, record("p", bleu=bleu), [answer("ü")])
    folder.save(config, record("q", bleu=3), [])
    assert [(row.id, row.bleu) for row in folder.records()] == [("p", 2), ("q", 3)]
    assert folder.generations("p") == [answer("ü")]
    assert len((folder.path / "runs.jsonl").read_text().splitlines()) == 3
    assert (folder.path / "configs" / "p.yaml").read_text().startswith("model:")


def test_a_row_without_its_generations_is_not_finished(tmp_path):
    folder = folder_in(tmp_path)
    folder.save(compose([]), record("p"), [])
    assert folder.record("p")
    folder.generations_path("p").unlink()
    assert folder.record("p") is None
    assert folder.record("q") is None


def test_an_older_row_counts_if_the_newest_does_not(tmp_path):
    folder = folder_in(tmp_path)
    for bleu in (1, 2):
        folder.save(compose([]), record("p", bleu=bleu), [])
    folder.append(record("p", status="failed"))
    assert folder.record("p").scores["bleu"] == 2
    assert folder.record("p", lambda one: one.scores["bleu"] != 2).scores["bleu"] == 1
    assert folder.record("p", lambda one: False) is None


def test_a_cut_off_line_costs_only_itself(tmp_path):
    folder = folder_in(tmp_path)
    folder.save(compose([]), record("p"), [])
    with (folder.path / "runs.jsonl").open("a") as stream:
        stream.write('{"id": "half')
    folder.save(compose([]), record("q"), [])
    assert [row.id for row in folder.records()] == ["p", "q"]


def test_a_refused_line_is_named_by_file_number_and_key(tmp_path):
    folder = folder_in(tmp_path)
    unprintable = '{"id": "q", "status": "done", "strategy": "\\ud800", "batch_size": 1}'
    for line in (
        '{"id": "p", "status": "done", "strategy": "s"}',
        "[]",
        "[" * 100_000,
        unprintable,
    ):
        append_line(folder.runs_path, line)
    folder.append(record("r"))
    rows, refused = folder.read()
    assert [row.id for row in rows] == ["r"]
    assert [
        f"{folder.runs_path}, line {i}: " in message for i, message in enumerate(refused, start=1)
    ] == [True] * 4
    assert "batch_size" in refused[0]


def test_an_id_that_no_file_can_have_is_refused(tmp_path):
    folder = folder_in(tmp_path)
    append_line(
        folder.runs_path,
        json.dumps({"id": "p" * 300, "status": "done", "strategy": "s", "batch_size": 1}),
    )
    assert (folder.records(), len(folder.read()[1])) == ([], 1)


def test_unusual_line_separators_stay_inside_their_row(tmp_path):
    folder = folder_in(tmp_path)
    folder.save(compose([]), record("p"), [answer("a\u2028b\x85c"), answer("d")])
    assert [row["hypothesis"] for row in folder.generations("p")] == ["a\u2028b\x85c", "d"]


@pytest.mark.parametrize(
    "line",
    [
        "[]",
        "{",
        '{"source": "s", "reference": "r"}',
        '{"source": 1, "reference": "r", "hypothesis": "h"}',
    ],
)
def test_a_line_that_is_no_answer_is_refused_by_file_and_number(tmp_path, line):
    folder = folder_in(tmp_path)
    folder.save_generations("p", [answer("a")])
    append_line(folder.generations_path("p"), line)
    with pytest.raises(UsageError, match=r"p\.jsonl, \w+ 2\b"):
        folder.generations("p")


def test_a_folder_that_cannot_be_written_is_refused_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=str(tmp_path / "file")):
        folder_in(tmp_path / "file").check_writable()
    folder_in(tmp_path).check_writable()
    assert list((tmp_path / "x").iterdir()) == []


def test_nothing_is_left_beside_a_whole_file(tmp_path):
    write_atomic(tmp_path / "deep" / "a.txt", "one")
    write_atomic(tmp_path / "deep" / "a.txt", "two")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a.txt"]
    assert (tmp_path / "deep" / "a.txt").read_text() == "two"


@given(st.lists(st.dictionaries(st.text(), st.integers() | st.text(), max_size=3), max_size=5))
def test_any_object_survives_a_line(rows):
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.jsonl"
        for row in rows:
            append_line(path, json.dumps(row))
        assert read_jsonl(path) == rows


def test_one_process_at_a_time_holds_the_claim_on_a_point(tmp_path):
    folder = folder_in(tmp_path)
    with folder.claim("p") as first, folder.claim("p") as second, folder.claim("q") as other:
        assert (first, second, other) == (True, False, True)
    with folder.claim("p") as again:
        assert again


def test_failed_rows_without_an_identity_are_points_of_their_own(tmp_path):
    folder = folder_in(tmp_path)
    for run_id in ("p", "q"):
        folder.append(record(run_id, status="failed"))
    assert [row.id for row in folder.records()] == ["p", "q"]
