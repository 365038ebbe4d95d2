import errno
import subprocess
import sys

import pytest

from ulskip_cli.core import files
from ulskip_cli.core.errors import StorageError, UsageError
from ulskip_cli.core.files import (
    append_line,
    lock,
    read_jsonl,
    read_object,
    try_lock,
    user_path,
    write_atomic,
)

HOLD = """
import sys, time
from pathlib import Path
from ulskip_cli.core.files import lock
with lock(Path(sys.argv[1])):
    print(1, flush=True)
    time.sleep(60)
"""

KILLED = """
import os, signal, sys
from pathlib import Path
from ulskip_cli.core.files import write_atomic
os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
write_atomic(Path(sys.argv[1]), "half")
"""


def test_a_claim_is_for_one_at_a_time(tmp_path):
    path = tmp_path / "a.lock"
    with try_lock(path) as mine:
        assert mine
        with try_lock(path) as other:
            assert not other
    with try_lock(path) as mine:
        assert mine


def test_a_process_that_is_killed_holds_nothing(tmp_path):
    path = tmp_path / "a.lock"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with try_lock(path) as mine:
            assert not mine
        other.kill()
        other.wait()
        with lock(path):
            pass


def test_a_lock_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(StorageError, match=str(tmp_path / "file")),
        lock(tmp_path / "file" / "a.lock"),
    ):
        pass


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_atomic(path, '{"a": 1}')

    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full_disk)
    with pytest.raises(StorageError, match="No space left"):
        write_atomic(path, '{"a": 2}')
    assert read_object(path) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_the_next_write_removes_what_a_killed_one_left(tmp_path):
    path, other = tmp_path / "a[1].json", tmp_path / "a[1].json.other"
    for file in (path, other):
        assert subprocess.run([sys.executable, "-c", KILLED, str(file)]).returncode == -9
    assert not path.exists()
    assert len(list(tmp_path.iterdir())) == 2
    write_atomic(path, "{}")
    assert path.read_text() == "{}"
    (left,) = (file.name for file in tmp_path.iterdir() if file != path)
    assert left.startswith(f".{other.name}.")


def test_a_write_keeps_the_temporary_file_of_a_running_process(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write = files.os.fsync

    def write_between(descriptor):
        monkeypatch.setattr(files.os, "fsync", write)
        write_atomic(path, "inner")
        write(descriptor)

    monkeypatch.setattr(files.os, "fsync", write_between)
    write_atomic(path, "outer")
    assert path.read_text() == "outer"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_append_leaves_the_file_as_before(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    append_line(path, '{"a": 1}')

    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full_disk)
    with pytest.raises(StorageError):
        append_line(path, '{"a": 2}')
    assert read_jsonl(path) == [{"a": 1}]


def test_a_line_that_a_crash_cut_off_is_ended_and_skipped(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n{"a": ')
    append_line(path, '{"a": 3}')
    assert read_jsonl(path) == [{"a": 1}, {"a": 3}]


def test_missing_and_broken_files_have_no_objects(tmp_path):
    assert read_jsonl(tmp_path / "none.jsonl") == []
    (tmp_path / "broken.json").write_text("[1]")
    assert read_object(tmp_path / "broken.json") is None
    assert read_object(tmp_path / "none.json") is None


@pytest.mark.parametrize(
    "text", ["", " ", "a\0b", "~nouser/x", "a" * 256, f"x/{'ä' * 128}", "a/" * 2100]
)
def test_a_text_that_is_no_path_is_refused(text):
    with pytest.raises(UsageError, match="output"):
        user_path(text, "output")


def test_a_path_of_a_user_is_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path("~/x", "output") == tmp_path / "x"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598"),
        ValueError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_told_with_the_path_and_the_needed_bytes(error, tmp_path):
    with (
        pytest.raises(StorageError, match=rf"{tmp_path}/out.* 300 MiB") as caught,
        files.enough_space(tmp_path / "out", 300 * 2**20),
    ):
        raise error
    assert "\n" not in str(caught.value)


def test_another_error_while_writing_stays_itself(tmp_path):
    with pytest.raises(ZeroDivisionError), files.enough_space(tmp_path, 1):
        raise ZeroDivisionError
