import contextlib
import os
import stat
from pathlib import Path
from types import SimpleNamespace

import pytest

from ulskip_cli.core.cache import cache_dir
from ulskip_cli.core.errors import UsageError


@pytest.mark.parametrize(
    ("mode", "user", "group", "accepted"),
    [
        *((0o755, 1000, 1000, True), (0o775, 1000, 1000, True), (0o755, 0, 0, True)),
        *((0o775, 1000, 50, False), (0o777, 1000, 1000, False), (0o755, 1001, 1000, False)),
    ],
)
def test_the_cache_must_be_writable_by_its_user_only(tmp_path, monkeypatch, mode, user, group, accepted):
    monkeypatch.setenv("ULSKIP_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    monkeypatch.setattr(Path, "stat", lambda path, **_: SimpleNamespace(st_mode=stat.S_IFDIR | mode, st_uid=user, st_gid=group))
    with contextlib.nullcontext() if accepted else pytest.raises(UsageError, match=r"writable by you only.*set ULSKIP_CACHE"):
        assert cache_dir() == tmp_path / "cache"


def test_a_new_cache_is_private_and_root_may_use_the_folder_of_another_user(tmp_path, monkeypatch):
    monkeypatch.setenv("ULSKIP_CACHE", str(tmp_path / "a" / "cache"))
    assert stat.S_IMODE(cache_dir().stat().st_mode) == 0o700
    monkeypatch.setattr(os, "getuid", lambda: 0)
    monkeypatch.setattr(Path, "stat", lambda path, **_: SimpleNamespace(st_mode=stat.S_IFDIR | 0o775, st_uid=1000, st_gid=1000))
    assert cache_dir().name == "cache"
