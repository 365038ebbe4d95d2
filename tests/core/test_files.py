import contextlib
import errno
import json
import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ulskip_cli.core import files
from ulskip_cli.core.errors import StorageError, UsageError

HOLD = """
import sys, time
from pathlib import Path
from ulskip_cli.core.files import lock
with lock(Path(sys.argv[1])):
    print(1, flush=True)
    time.sleep(60)
"""


def test_a_lock_is_held_once_and_not_by_killed_processes(tmp_path):
    path = tmp_path / "a.lock"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        with files.lock(path, wait=False) as held:
            assert not held
        child.kill()
        child.wait()
        with files.lock(path) as first, files.lock(path, wait=False) as second:
            assert (first, second) == (True, False)


def test_a_lock_that_cannot_be_written_is_reported(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(StorageError, match=r"file/a\.lock"),
        files.lock(tmp_path / "file" / "a.lock"),
    ):
        pass


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    whole, lines = tmp_path / "a.json", tmp_path / "a.jsonl"
    files.write_atomic(whole, '{"a": 1}')
    files.append_line(lines, '{"a": 1}')

    full_disk = Mock(side_effect=OSError(errno.ENOSPC, "No space left on device"))
    monkeypatch.setattr(files.os, "fsync", full_disk)
    for write, path in ((files.write_atomic, whole), (files.append_line, lines)):
        with pytest.raises(StorageError, match=r"No space left.*free some space"):
            write(path, '{"a": 2}')
    assert files.read_object(whole) == {"a": 1} and files.read_jsonl(lines) == [{"a": 1}]
    assert sorted(tmp_path.iterdir()) == [whole, lines]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"),
    ],
)
def test_a_full_disk_is_told_from_the_errors_of_libraries(tmp_path, error):
    told = pytest.raises(StorageError, match=r"out \(No space left.*free some space")
    with told, files.noticing_full_disk(tmp_path / "out"):
        raise error
    with pytest.raises(ZeroDivisionError), files.noticing_full_disk(tmp_path):
        raise ZeroDivisionError
    with pytest.raises(ConnectionError), files.noticing_full_disk(tmp_path):
        raise ConnectionError("refused")


def test_a_line_that_a_crash_cut_off_is_ended_and_skipped(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n{"a": ')
    files.append_line(path, '{"a": 3}')
    assert files.read_jsonl(path) == [{"a": 1}, {"a": 3}]


@settings(max_examples=10)
@given(st.lists(st.dictionaries(st.text(), st.integers() | st.text(), max_size=3), max_size=5))
def test_any_object_survives_a_line(rows):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.jsonl"
        for row in rows:
            files.append_line(path, json.dumps(row))
        assert files.read_jsonl(path) == rows


@pytest.mark.parametrize(
    ("user", "owner", "is_accepted"),
    [(1000, 1000, True), (1000, 0, True), (1000, 1001, False), (0, 1000, True)],
)
def test_the_cache_belongs_to_its_user(tmp_path, monkeypatch, user, owner, is_accepted):
    monkeypatch.setenv("ULSKIP_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    monkeypatch.setattr(os, "getuid", lambda: user)
    folder = SimpleNamespace(st_mode=stat.S_IFDIR, st_uid=owner)
    monkeypatch.setattr(Path, "stat", lambda path, **_: folder)
    refused = pytest.raises(UsageError, match="set ULSKIP_CACHE")
    with contextlib.nullcontext() if is_accepted else refused:
        assert files.cache_dir() == tmp_path / "cache"
