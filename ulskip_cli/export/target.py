"""Where an export goes: written beside its place and moved there whole, never over what is somebody else's."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from ulskip_cli.errors import UsageError

RECORD = "ulskip_export.json"
_PART = ".ulskip-part"
_MARK = b"ulskip"
_HEAD_BYTES = 65536


def check_folder(folder: Path) -> None:
    """Refuse a folder that holds anything but an earlier export.

    Raises:
        UsageError: something else is there.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UsageError(f"--to {folder} is a file; expected a folder that is not there yet")
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}
    if not found:
        return
    try:
        known = set(json.loads((folder / RECORD).read_text("utf-8"))["files"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UsageError(f"--to {folder} is there and is no export of ulskip; give a folder that is not") from None
    others = sorted(found - known - {RECORD})
    if others:
        raise UsageError(f"--to {folder} holds {others[0]} besides an earlier export; move it away, or give another folder")


def check_file(file: Path) -> None:
    """Refuse a file that no export wrote.

    Raises:
        UsageError: something else is there.
    """
    if file.is_dir():
        raise UsageError(f"--to {file} is a folder; expected a file's name in it")
    if file.exists():
        with file.open("rb") as stream:
            if _MARK not in stream.read(_HEAD_BYTES):
                raise UsageError(f"--to {file} is there and is no export of ulskip; give another name")


@contextmanager
def staged_folder(folder: Path) -> Iterator[Path]:
    """An empty folder that takes the place of `folder` when all went well, and goes when it did not."""
    check_folder(folder)
    staging = _staging(folder)
    try:
        staging.mkdir(parents=True)
    except OSError as error:
        raise UsageError(f"cannot write to {folder.parent} ({error.strerror or error})") from None
    try:
        yield staging
        _swap(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def staged_file(file: Path) -> Iterator[Path]:
    """A name for a file that takes the place of `file` when all went well, and goes when it did not."""
    check_file(file)
    staging = _staging(file)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        staging.touch()
    except OSError as error:
        raise UsageError(f"cannot write {file} ({error.strerror or error})") from None
    try:
        yield staging
        staging.replace(file)
    finally:
        staging.unlink(missing_ok=True)


def _staging(target: Path) -> Path:
    """A hidden neighbour, whose rename is one step; those of exports that were killed are swept away."""
    target = target.absolute()
    for stale in target.parent.glob(f".{target.name}.*{_PART}"):
        owner = stale.name.removesuffix(_PART).rsplit(".", 1)[-1]
        if owner.isdecimal() and not psutil.pid_exists(int(owner)):
            if stale.is_dir():
                shutil.rmtree(stale, ignore_errors=True)
            else:
                stale.unlink(missing_ok=True)
    return target.with_name(f".{target.name}.{os.getpid()}{_PART}")


def _swap(staging: Path, folder: Path) -> None:
    """Move the new folder in, the old one out; the old one comes back where that fails."""
    if not folder.exists():
        staging.rename(folder)
        return
    old = staging.with_name(staging.name.removesuffix(_PART) + f".0{_PART}")
    folder.rename(old)
    try:
        staging.rename(folder)
    except OSError:
        old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)
