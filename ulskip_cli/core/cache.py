"""The folder of files that ulskip makes once on a machine: compiled code, converted models and exports for engines."""

import contextlib
import os
import stat
from pathlib import Path

from ulskip_cli.core.errors import UsageError


def cache_dir() -> Path:
    """Return the folder of compiled code and converted models: $ULSKIP_CACHE, or a folder in the user's cache.

    Raise UsageError if other users can write to it, because ulskip runs the code in it.
    """
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(os.environ.get("ULSKIP_CACHE") or Path(base) / "ulskip")
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if hasattr(os, "getuid") and folder.is_dir():
        status, user = folder.stat(), os.getuid()
        own_group = status.st_gid == status.st_uid  # on many systems each user has a group of this number for itself
        others = stat.S_IWOTH | (0 if own_group else stat.S_IWGRP)
        if status.st_mode & others or (user and status.st_uid not in (user, 0)):  # root is used to folders of other users
            raise UsageError(
                f"expected the cache {folder} to be writable by you only, because ulskip runs code from it, got mode "
                f"{stat.S_IMODE(status.st_mode):o} of user {status.st_uid}; set ULSKIP_CACHE to a folder of your own"
            )
    return folder
