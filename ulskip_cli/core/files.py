"""Crash-safe files: atomic writes, appended lines, and locks between processes; paths that users
give, and texts of other people's files.
"""

import contextlib
import errno
import glob
import json
import os
import platform
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ulskip_cli.core.errors import StorageError, UsageError, reason

JsonObject = dict[str, Any]  # keys and values of a user, of JSON, or for another program

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
# in messages of safetensors and of torch.save
_FULL = re.compile("No space left|Disk quota exceeded|inline_container.*(failed writing|pos)")
JOINERS = "\u200c\u200d"  # of Persian and Indic letters, and of emoji
_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_SUFFIXES = (".gguf", ".gz", ".json", ".jsonl", ".safetensors", ".txt")  # of no hub id
_PART = ".ulskip-part"  # the end of the names of unfinished folders


def timestamp() -> str:
    """Return the time (UTC), in seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def read_jsonl(path: Path) -> list[JsonObject]:
    """Read the JSON objects of a file, one per line, without broken lines; a missing file has
    none.
    """
    lines = path.read_text("utf-8", errors="replace").split("\n") if path.is_file() else []
    return [row for line in lines if (row := _object(line)) is not None]


def read_object(path: Path) -> JsonObject | None:
    """Read a JSON object; return None if there is none."""
    return _object(path.read_bytes()) if path.is_file() else None


def _object(text: str | bytes) -> JsonObject | None:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file completely or not at all; raise StorageError if that fails."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    with _storing(path):
        try:
            with temporary.open("wb") as stream:
                stream.write(content.encode() if isinstance(content, str) else content)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def append_line(path: Path, line: str) -> None:
    """Append a line completely or not at all; a line that a crash cut off is ended first. Raise
    StorageError if the write fails.
    """
    with _storing(path), path.open("ab+", buffering=0) as stream:
        end = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, end - 1))
        is_cut_off = stream.read(1) not in (b"", b"\n")
        data = (f"\n{line}\n" if is_cut_off else f"{line}\n").encode()
        try:
            while data:  # the system may write less than it gets
                data = data[os.write(stream.fileno(), data) :]
            os.fsync(stream.fileno())
        except OSError:
            with contextlib.suppress(OSError):
                stream.truncate(end)
            raise


@contextlib.contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Yield the path of a new file or folder, in a hidden folder next to `target`; it replaces
    `target` if the block succeeds. Otherwise `target` stays as it was, and nothing is left behind;
    what a killed process left is removed by the next one that succeeds.
    """
    import psutil  # takes 20 ms

    target.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{target.name}.{platform.node()}-"
    with tempfile.TemporaryDirectory(
        _PART, f"{prefix}{os.getpid()}.", target.parent, ignore_cleanup_errors=True
    ) as scratch:  # writable by this user only
        staging = Path(scratch) / target.name
        earlier = staging.with_name(target.name + ".earlier")
        yield staging
        try:
            if target.is_dir():  # a rename replaces a file, but no folder
                target.rename(earlier)
            staging.replace(target)
        except BaseException:  # an interrupt too
            if earlier.exists():
                earlier.rename(target)
            raise
    for left in target.parent.glob(f"{glob.escape(prefix)}*{_PART}"):  # of this machine
        owner = left.name.removeprefix(prefix).partition(".")[0]  # the id of a process
        if owner.isdecimal() and not psutil.pid_exists(int(owner)):
            shutil.rmtree(left, ignore_errors=True)


@contextlib.contextmanager
def _storing(path: Path) -> Iterator[None]:
    """Make the folder of a path, and raise StorageError if that or the block, which writes the
    path, fails.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except (OSError, NotImplementedError) as error:  # the latter: the folder supports no locks
        is_full = isinstance(error, OSError) and error.errno in _NO_SPACE
        raise StorageError(
            f"cannot write {path} ({reason(error, True)}); earlier"
            f" results are kept; {'free some space' if is_full else 'make the folder writable'} and"
            " run the same command again"
        ) from None


@contextlib.contextmanager
def noticing_full_disk(path: Path) -> Iterator[None]:
    """Raise StorageError if the block fails because the disk of a path is full. Libraries that
    write weights have error types of their own.
    """
    try:
        yield
    except Exception as error:
        if getattr(error, "errno", None) not in _NO_SPACE and not _FULL.search(str(error)):
            raise
        with _storing(path):  # which makes the StorageError
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from None


@contextlib.contextmanager
def lock(path: Path, wait: bool = True) -> Iterator[bool]:
    """Hold a lock inside the block and yield True. Without `wait`, the block also runs if another
    process holds it, and gets False. Raise StorageError if the file cannot be written.
    """
    from filelock import FileLock, Timeout

    held = FileLock(path)
    with _storing(path), contextlib.suppress(Timeout):
        held.acquire(timeout=-1 if wait else 0, poll_interval=0.01)
    try:
        yield held.is_locked
    finally:
        held.release()


def check_writable(folder: Path, key: str) -> None:
    """Raise UsageError that names the option `key` if a folder cannot be written."""
    try:
        existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        tempfile.TemporaryFile(dir=existing).close()
    except OSError as error:
        raise UsageError(
            f"cannot write to {folder} ({reason(error, True)}); set another {key}=DIR"
        ) from None


def user_path(given: str | Path, key: str) -> Path:
    """Return a path that a user gave, with `~` replaced; raise UsageError if a text cannot be
    one.
    """
    text = str(given)
    try:
        path = Path(text).expanduser()
        # The system fails on too long names and on null characters; a path need not exist.
        for name in map(str, (path, *path.parts)):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
                os.lstat(name)
    except (OSError, RuntimeError, ValueError) as error:
        raise UsageError(
            f"expected {key} to be a path, got '{text[:80]}' ({reason(error, True)})"
        ) from None
    if not text.strip():
        raise UsageError(f"expected {key} to be a path, got an empty text")
    return path


def is_existing(text: str) -> bool:
    """Return True if a text is an existing path."""
    try:
        return Path(text).expanduser().exists()
    except (OSError, RuntimeError, ValueError):  # no text of a path
        return False


def check_hub_id(name: str, key: str) -> None:
    """Raise UsageError if a text, which is no local path, cannot be a hub id: `name` or
    `owner/name`.
    """
    if not _HUB_ID.fullmatch(name) or Path(name).suffix in _SUFFIXES:
        raise UsageError(f"no such file or folder: {key}='{name}'; correct it, or give a hub id")


def cache_dir() -> Path:
    """Return the folder of compiled code and converted models: $ULSKIP_CACHE, or one in the user's
    cache.

    Raise UsageError if it belongs to another user, because ulskip runs code from it.
    """
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(os.environ.get("ULSKIP_CACHE") or Path(base) / "ulskip")
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.is_dir():
        owner, user = folder.stat().st_uid, os.getuid()
        # Root (0) may use the folder of any user, and all users trust a folder of root.
        if user and owner not in (user, 0):
            raise UsageError(
                f"expected the cache {folder} to be yours, because ulskip runs code from it, got a"
                f" folder of user {owner}; set ULSKIP_CACHE to a folder of your own"
            )
    return folder


def printable(text: str) -> str:
    r"""Return a text on one line that is safe for a terminal: white space becomes spaces, and
    characters that cannot be printed become escapes, except JOINERS, which scripts need.

    >>> print(printable("a\n\x1b[31mred"))
    a \x1b[31mred
    """
    if text.isprintable():
        return text
    text = re.sub(r"\s", " ", text)
    return "".join(
        character if character.isprintable() or character in JOINERS else repr(character)[1:-1]
        for character in text
    )


def printable_lines(text: str) -> str:
    r"""Return a text whose lines are printable.

    >>> print(printable_lines("a\n\x1b[31mred"))
    a
    \x1b[31mred
    """
    return "\n".join(map(printable, text.split("\n")))


def all_printable(value: Any) -> Any:
    """Return a JSON value with printable texts and keys."""
    return change_texts(value, printable)


def change_texts(value: Any, change: Callable[[str], str]) -> Any:
    """Return a JSON value with all texts and keys changed; keys become texts, as in a file."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {change(str(key)): change_texts(item, change) for key, item in value.items()}
    return [change_texts(item, change) for item in value] if isinstance(value, list) else value
