import contextlib
import os
import stat
from pathlib import Path
from types import SimpleNamespace

import pytest

from ulskip_cli.core.cache import cache_dir
from ulskip_cli.core.errors import UsageError


@pytest.mark.parametrize(
    ("user", "owner", "accepted"),
    [(1000, 1000, True), (1000, 0, True), (1000, 1001, False), (0, 1000, True)],
)
def test_the_cache_belongs_to_its_user(tmp_path, monkeypatch, user, owner, accepted):
    monkeypatch.setenv("ULSKIP_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    monkeypatch.setattr(os, "getuid", lambda: user)
    monkeypatch.setattr(
        Path, "stat", lambda path, **_: SimpleNamespace(st_mode=stat.S_IFDIR, st_uid=owner)
    )
    with (
        contextlib.nullcontext()
        if accepted
        else pytest.raises(UsageError, match="set ULSKIP_CACHE")
    ):
        assert cache_dir() == tmp_path / "cache"
