"""The folder of files that ulskip makes once on a machine: compiled code, converted models and
exports for engines.
"""

import contextlib
import os
from pathlib import Path

from ulskip_cli.core.errors import UsageError


def cache_dir() -> Path:
    """Return the folder of compiled code and converted models: $ULSKIP_CACHE, or a folder in the
    user's cache.

    Raise UsageError if it belongs to another user, because ulskip runs the code in it.
    """
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(os.environ.get("ULSKIP_CACHE") or Path(base) / "ulskip")
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if hasattr(os, "getuid") and folder.is_dir():
        owner, user = folder.stat().st_uid, os.getuid()
        if user and owner not in (user, 0):  # root is used to folders of other users
            raise UsageError(
                f"expected the cache {folder} to be yours, because ulskip runs code from it, got a"
                f" folder of user {owner}; set ULSKIP_CACHE to a folder of your own"
            )
    return folder
