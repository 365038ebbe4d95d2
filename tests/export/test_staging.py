import json
import os
from pathlib import Path

import pytest

from ulskip_cli.core.errors import UsageError
from ulskip_cli.export.staging import RECORD, staged


def write_export(folder, text="weights"):
    with staged(folder, is_folder=True) as staging:
        (staging / "model").write_text(text)
        (staging / RECORD).write_text(json.dumps({"files": ["model"]}))


def test_a_folder_appears_when_it_is_complete(tmp_path):
    write_export(tmp_path / "deep" / "out")
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["out"]
    assert (tmp_path / "deep" / "out" / "model").read_text() == "weights"


def test_an_earlier_export_is_replaced(tmp_path):
    write_export(tmp_path / "out")
    write_export(tmp_path / "out", "newer")
    assert (tmp_path / "out" / "model").read_text() == "newer"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_empty_folder_is_accepted(tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(RuntimeError), staged(tmp_path / "out", is_folder=True):
        raise RuntimeError
    assert (tmp_path / "out").is_dir()
    write_export(tmp_path / "out")
    assert (tmp_path / "out" / "model").is_file()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interruption_keeps_the_earlier_export(tmp_path, error):
    write_export(tmp_path / "out")
    with pytest.raises(error), staged(tmp_path / "out", is_folder=True) as staging:
        (staging / "model").write_text("half")
        raise error
    assert (tmp_path / "out" / "model").read_text() == "weights"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_scratch_folder_of_a_killed_export_is_removed(tmp_path):
    stale = tmp_path / ".out.999999999.ulskip-part"
    stale.mkdir()
    write_export(tmp_path / "out")
    assert not stale.exists()


def test_a_failure_keeps_an_empty_folder_and_removes_the_folders_it_made(tmp_path):
    (tmp_path / "mine").mkdir()
    for target, is_folder in (
        ("mine", True),
        ("mine/file", False),
        ("new/out", True),
        ("deep/er/file", False),
    ):
        with pytest.raises(RuntimeError), staged(tmp_path / target, is_folder) as staging:
            (staging / "half" if is_folder else staging).write_text("half")
            raise RuntimeError
        assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["mine"]


def test_a_failed_move_restores_the_earlier_folder(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    real = Path.rename

    def rename(path, target):
        if path.parent.name.endswith(".ulskip-part") and not path.name.endswith(".earlier"):
            raise OSError("no")
        return real(path, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(OSError, match="no"):
        write_export(tmp_path / "out")
    assert [path.name for path in tmp_path.rglob("*")] == ["out"]


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis").write_text("x")
    with pytest.raises(UsageError, match=f"--to, got {tmp_path / 'out'}"):
        write_export(tmp_path / "out")
    (tmp_path / "out" / "thesis").unlink()
    write_export(tmp_path / "out")
    (tmp_path / "out" / "thesis").write_text("x")
    with pytest.raises(UsageError, match=r"--to .*thesis"):
        write_export(tmp_path / "out")
    assert (tmp_path / "out" / "thesis").read_text() == "x"


def test_a_file_is_refused_as_a_folder(tmp_path):
    (tmp_path / "out").write_text("x")
    with pytest.raises(UsageError, match=f"--to.* file {tmp_path / 'out'}"):
        write_export(tmp_path / "out")


def test_a_file_replaces_only_an_earlier_export(tmp_path):
    file = tmp_path / "x" / "s.json"
    for text in ("ulskip 1", "ulskip 2"):
        with staged(file, is_folder=False) as staging:
            staging.write_text(text)
    with pytest.raises(RuntimeError), staged(file, is_folder=False) as staging:
        staging.write_text("half")
        raise RuntimeError
    assert file.read_text() == "ulskip 2"
    assert [path.name for path in file.parent.iterdir()] == ["s.json"]
    file.write_text("mine")
    with pytest.raises(UsageError, match=f"--to.*{file}"), staged(file, is_folder=False):
        pass
    with (
        pytest.raises(UsageError, match=f"--to.* folder {tmp_path}"),
        staged(tmp_path, is_folder=False),
    ):
        pass


def test_nothing_is_written_into_a_folder_that_was_prepared(tmp_path):
    prepared = tmp_path / f".out.{os.getpid()}.ulskip-part"
    (tmp_path / "victim").mkdir()
    prepared.symlink_to(tmp_path / "victim")
    with staged(tmp_path / "out", is_folder=True) as staging:
        assert staging.parent != prepared and staging.parent.stat().st_mode & 0o077 == 0
        (staging / "model").write_text("weights")
    assert (tmp_path / "out").stat().st_mode & 0o777 == (tmp_path / "victim").stat().st_mode & 0o777
    assert not list((tmp_path / "victim").iterdir())
