"""Files that survive anything: atomic writes, appended lines, JSON lines, and locks between processes."""

import contextlib
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ulskip_cli.core.errors import StorageError

FREE_SPACE = "what was written before is kept; make room and run the same command again"


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The objects in a file, one a line; none where there is no file. Broken lines are passed over."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text("utf-8", errors="replace").split("\n"):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def read_object(path: Path) -> dict[str, Any] | None:
    """The object in a file; None where there is none that can be read."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file whole or not at all: a temporary file, then a rename.

    Raises:
        StorageError: there is no room, or no right to write.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    with _storing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as stream:
                stream.write(content.encode() if isinstance(content, str) else content)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def append_line(path: Path, line: str, sync: bool = True) -> None:
    """Append one line in one write and flush it; a line that an earlier crash cut off is ended first.

    Args:
        path: of the file.
        line: without its end.
        sync: have it on the disk before going on, so that not even a power cut loses it.

    Raises:
        StorageError: there is no room, or no right to write; the file is as before.
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
                _write_all(stream.fileno(), f"{line}\n".encode())
                if sync:
                    os.fsync(stream.fileno())
            except OSError:
                with contextlib.suppress(OSError):
                    stream.truncate(end)
                raise


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


@contextlib.contextmanager
def _storing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"cannot write {path} ({error.strerror or error}); {FREE_SPACE}") from None


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """Wait for a lock, and hold it.

    Raises:
        StorageError: the lock's file cannot be written.
    """
    lock = _lock(path)
    _acquire(lock, path, -1)
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def try_lock(path: Path) -> Iterator[bool]:
    """Hold a lock if nobody else does; whether it is held.

    Raises:
        StorageError: the lock's file cannot be written.
    """
    lock = _lock(path)
    try:
        _acquire(lock, path, 0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _lock(path: Path) -> FileLock:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot write {path.parent} ({error.strerror or error})") from None
    return FileLock(path)


def _acquire(lock: FileLock, path: Path, timeout: float) -> None:
    try:
        lock.acquire(timeout=timeout, poll_interval=0.01)
    except Timeout:
        raise
    except (OSError, NotImplementedError) as error:
        raise StorageError(f"cannot lock {path} ({getattr(error, 'strerror', None) or error})") from None
