"""Crash-safe files: atomic writes, appended lines, JSON lines, and locks between processes."""

import contextlib
import errno
import glob
import json
import os
import platform
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from filelock import BaseFileLock, FileLock, Timeout

from ulskip_cli.core.errors import StorageError, UsageError

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_FULL_DISK = (
    "No space left",
    "os error 28",
    "Disk quota",
    "inline_container",
)  # of safetensors and of torch.save
_HOST = platform.node()[
    :32
]  # process ids are those of one machine, and a folder can be shared by several
_MAX_NAME, _MAX_PATH = 255, 4095  # bytes, of Linux and macOS


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read the JSON objects of a file, one per line; skip broken lines. A missing file has no
    objects.
    """
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text("utf-8", errors="replace").split("\n"):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def read_object(path: Path) -> dict[str, Any] | None:
    """Read the JSON object in a file; return None if the file is missing or contains no JSON
    object.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def write_atomic(path: Path, content: str | bytes, sync: bool = True) -> None:
    """Write a file completely or not at all, through a temporary file; raise StorageError if the
    write fails.

    Temporary files that killed processes of this machine left beside it are removed.
    """
    temporary = path.with_name(f".{path.name}.{_HOST}.{os.getpid()}.{uuid.uuid4().hex[:8]}.tmp")
    with _storing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as stream:
                stream.write(content.encode() if isinstance(content, str) else content)
                stream.flush()
                if sync:
                    os.fsync(stream.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        for leftover in path.parent.glob(f".{glob.escape(path.name)}.{glob.escape(_HOST)}.*.*.tmp"):
            writer = leftover.name.split(".")[-3]
            if writer.isdigit() and not psutil.pid_exists(int(writer)):
                leftover.unlink(missing_ok=True)


def append_line(path: Path, line: str, sync: bool = True) -> None:
    """Append a line in one write; a line that a crash cut off is ended first. Raise StorageError if
    the write fails.
    """
    with _storing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+", buffering=0) as stream:
            end = stream.seek(0, os.SEEK_END)
            if end > 0:
                stream.seek(-1, os.SEEK_END)
                if stream.read(1) != b"\n":
                    line = "\n" + line
            try:
                data = f"{line}\n".encode()
                while data:
                    data = data[os.write(stream.fileno(), data) :]
                if sync:
                    os.fsync(stream.fileno())
            except OSError:
                with contextlib.suppress(OSError):
                    stream.truncate(end)
                raise


@contextlib.contextmanager
def _storing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"cannot write {path} ({error.strerror or error}); what was written before is kept;"
            f" {_remedy(error)} and run the same command again"
        ) from None


def _remedy(error: OSError) -> str:
    return "free some space" if error.errno in _NO_SPACE else "make the folder writable"


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """Wait for a lock and hold it inside the block; raise StorageError if the lock file cannot be
    written.
    """
    lock = _acquired(path, -1)
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def try_lock(path: Path) -> Iterator[bool]:
    """Hold a lock inside the block if the lock is free, and yield True if it is held; raise
    StorageError as `lock` does.
    """
    try:
        lock = _acquired(path, 0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _acquired(path: Path, timeout: float) -> BaseFileLock:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"cannot create {path.parent} ({error.strerror or error}); {_remedy(error)}"
        ) from None
    lock = FileLock(path)
    try:
        lock.acquire(timeout=timeout, poll_interval=0.01)
        return lock
    except Timeout:
        raise
    except (OSError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or error
        raise StorageError(
            f"cannot lock {path} ({reason}); use a writable folder that supports locks"
        ) from None


def user_path(given: str | Path, key: str) -> Path:
    """Return the path that a user gave, with `~` replaced; raise UsageError if a text cannot be a
    path.
    """
    text = str(given)
    try:
        path = Path(text).expanduser()
    except RuntimeError:
        raise UsageError(
            f"expected {key} to be a path, got '{text[:80]}', whose home folder is unknown"
        ) from None
    if not text.strip() or "\0" in text:
        raise UsageError(f"expected {key} to be a path, got '{text[:80]}'; use . for this folder")
    longest = max((len(os.fsencode(part)) for part in path.parts), default=0)
    if longest > _MAX_NAME or len(os.fsencode(path)) > _MAX_PATH:
        raise UsageError(
            f"expected {key} to be a path, got a name of {longest} bytes, '{text[:40]}...'; use a"
            " shorter name"
        )
    return path


@contextlib.contextmanager
def enough_space(folder: Path, needed: int) -> Iterator[None]:
    """Raise StorageError with the path and the needed bytes if the disk becomes full inside the
    block.
    """
    try:
        yield
    except Exception as error:  # each library that writes files has an exception of its own
        is_full = isinstance(error, OSError) and error.errno in _NO_SPACE
        if not is_full and not any(text in str(error) for text in _FULL_DISK):
            raise
        existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        free = shutil.disk_usage(existing).free
        raise StorageError(
            f"cannot write {folder} (the disk is full): about {needed / 2**20:,.0f} MiB are needed,"
            f" {free / 2**20:,.0f} MiB are free; free some space and run the same command again"
        ) from None
