import pytest
from report_rows import small_sweep, write_folder

from ulskip_cli.core.errors import UsageError
from ulskip_cli.report import sources


def test_folders_are_found_by_their_rows(tmp_path):
    one, two = (write_folder(tmp_path / name, small_sweep()) for name in ("one", "two"))
    assert sources.folders([], tmp_path) == [one, two]
    assert sources.folders([tmp_path], tmp_path) == [one, two]
    assert sources.folders([two / "runs.jsonl", two], tmp_path) == [two]


def test_what_has_no_rows_is_refused_with_what_has(tmp_path):
    write_folder(tmp_path / "one", small_sweep())
    with pytest.raises(UsageError, match=rf"got 'nowhere'; known: {tmp_path / 'one'}"):
        sources.folders([sources.Path("nowhere")], tmp_path)
    with pytest.raises(UsageError, match="ulskip sweep"):
        sources.folders([], tmp_path / "none")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "runs.jsonl").write_text("{broken\n")
    with pytest.raises(UsageError, match="at least one row"):
        sources.read([tmp_path / "empty"])


def test_rows_know_their_folder_and_answers_are_read_on_demand(tmp_path):
    path = write_folder(tmp_path / "one", small_sweep(), {"unified-2-1": ["a", "b"]})
    rows = sources.read([path])
    assert {row["folder"] for row in rows} == {str(path)}
    by_id = {row["id"]: row for row in rows}
    assert [one["hypothesis"] for one in sources.generations(by_id["unified-2-1"])] == ["a", "b"]
    assert sources.generations(by_id["full-1-1"]) == []


def test_lines_that_are_no_rows_are_left_out_with_a_word(tmp_path, capsys):
    write_folder(tmp_path / "x", small_sweep())
    with (tmp_path / "x" / "runs.jsonl").open("a") as stream:
        stream.write('{"id": "alone"}\nrubbish\n')
    assert len(sources.read([tmp_path / "x"])) == len(small_sweep())
    assert "2 lines of" in capsys.readouterr().err


def test_a_sweep_that_was_stopped_before_its_first_point_is_told(tmp_path):
    (tmp_path / "x" / "generations").mkdir(parents=True)
    with pytest.raises(UsageError, match="is finished yet"):
        sources.folders([tmp_path / "x"], tmp_path)
