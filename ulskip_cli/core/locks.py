"""Locks between processes, on one machine or on several that share a folder; one that ends, however, holds none."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from ulskip_cli.core.errors import StorageError


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
