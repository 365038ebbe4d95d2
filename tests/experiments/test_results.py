import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ulskip_cli.tasks.example import Example

from ulskip_cli.core.config import compose
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.files import append_line, read_jsonl, write_atomic
from ulskip_cli.experiments.results import ResultsFolder, point_id

RANDOM = ["model=random"]
EXAMPLES = [Example("0", "a", "b")]


def folder_in(tmp_path, name="x"):
    return ResultsFolder.of(compose([f"results_dir={tmp_path}", f"name={name}"]))


def test_saved_runs_are_read_back_the_newest_winning(tmp_path):
    folder, config = folder_in(tmp_path), compose([])
    for bleu in (1, 2):
        folder.save(config, {"id": "p", "strategy": "unified", "bleu": bleu}, [{"hypothesis": "ü"}])
    folder.save(config, {"id": "q", "strategy": "unified", "bleu": 3}, [])
    assert [(row["id"], row["bleu"]) for row in folder.rows()] == [("p", 2), ("q", 3)]
    assert folder.generations("p") == [{"hypothesis": "ü"}]
    assert len((folder.path / "runs.jsonl").read_text().splitlines()) == 3
    assert (folder.path / "configs" / "p.yaml").read_text().startswith("model:")


def test_a_row_without_its_generations_is_not_finished(tmp_path):
    folder = folder_in(tmp_path)
    folder.save(compose([]), {"id": "p", "strategy": "unified"}, [])
    assert folder.row("p")
    folder.generations_path("p").unlink()
    assert folder.row("p") is None
    assert folder.row("q") is None


def test_an_older_row_counts_if_the_newest_does_not(tmp_path):
    folder = folder_in(tmp_path)
    for bleu in (1, 2):
        folder.save(compose([]), {"id": "p", "strategy": "unified", "bleu": bleu}, [])
    folder.append({"id": "p", "strategy": "unified", "status": "failed"})
    assert folder.row("p")["bleu"] == 2
    assert folder.row("p", lambda row: row.get("bleu") != 2)["bleu"] == 1
    assert folder.row("p", lambda row: False) is None


def test_a_cut_off_line_costs_only_itself(tmp_path):
    folder = folder_in(tmp_path)
    folder.save(compose([]), {"id": "p", "strategy": "unified"}, [])
    with (folder.path / "runs.jsonl").open("a") as stream:
        stream.write('{"id": "half')
    folder.save(compose([]), {"id": "q", "strategy": "unified"}, [])
    assert [row["id"] for row in folder.rows()] == ["p", "q"]


def test_unusual_line_separators_stay_inside_their_row(tmp_path):
    folder = folder_in(tmp_path)
    folder.save(compose([]), {"id": "p", "strategy": "unified"}, [{"hypothesis": "a\u2028b\x85c"}, {"hypothesis": "d"}])
    assert [row["hypothesis"] for row in folder.generations("p")] == ["a\u2028b\x85c", "d"]


def test_a_folder_that_cannot_be_written_is_refused_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write results to"):
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


def test_a_point_is_its_configuration_and_its_data():
    config = compose(RANDOM)
    assert point_id(config, EXAMPLES) == point_id(compose([*RANDOM, "name=other"]), EXAMPLES)
    assert point_id(config, EXAMPLES) != point_id(compose([*RANDOM, "ratio=3"]), EXAMPLES)
    assert point_id(config, EXAMPLES) != point_id(config, [Example("0", "a", "c")])


def test_a_point_is_its_weights(model_folder, tmp_path):
    import shutil

    shutil.copytree(model_folder, tmp_path / "m")
    config = compose(["model=hf", f"model.path={tmp_path / 'm'}"])
    before = point_id(config, EXAMPLES)
    assert point_id(config, EXAMPLES) == before
    weights = tmp_path / "m" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert point_id(config, EXAMPLES) != before
