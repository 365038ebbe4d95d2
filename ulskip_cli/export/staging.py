"""Write an export into a scratch folder, and replace the target when the export is complete.
Imports no torch.
"""

import contextlib
import glob
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil

from ulskip_cli.core.errors import UsageError

RECORD = "ulskip_export.json"
_SCRATCH_SUFFIX = ".ulskip-part"
_MARK = b"ulskip"
_HEAD_BYTES = 65536


def check_target(target: Path, is_folder: bool) -> None:
    """Raise UsageError if a target contains anything but an earlier export."""
    if target.absolute() == target.absolute().parent:
        raise UsageError(f"expected a new folder for --to, got {target}; use another path")
    if is_folder and target.is_dir():
        _check_contents(target)
    elif is_folder and target.exists():
        raise UsageError(f"expected a folder for --to, got the file {target}; use another path")
    elif target.is_dir():
        raise UsageError(f"expected a file for --to, got the folder {target}; add a file name")
    elif target.exists():
        with target.open("rb") as stream:
            if _MARK not in stream.read(_HEAD_BYTES):
                raise UsageError(
                    f"expected a new file or an earlier export for --to, got {target}; use another"
                    " path"
                )


@contextlib.contextmanager
def staged(target: Path, is_folder: bool) -> Iterator[Path]:
    """Yield a path in a hidden folder next to the target; the content of the path replaces the
    target if the block succeeds.

    After a failure the target is unchanged, and the scratch folder and all created parent folders
    are removed.
    """
    check_target(target, is_folder)
    target = target.absolute()
    for abandoned in target.parent.glob(
        f".{glob.escape(target.name)}.*{_SCRATCH_SUFFIX}"
    ):  # left by killed exports
        owner = abandoned.name.removesuffix(_SCRATCH_SUFFIX).rsplit(".", 1)[-1]
        if owner.isdecimal() and (int(owner) == os.getpid() or not psutil.pid_exists(int(owner))):
            shutil.rmtree(abandoned, ignore_errors=True)
    made = [parent for parent in target.parents if not parent.exists()]
    scratch: Path | None = None
    try:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            suffix = f".{os.getpid()}{_SCRATCH_SUFFIX}"
            scratch = Path(
                tempfile.mkdtemp(suffix, f".{target.name}.", target.parent)
            )  # new, and writable by this user only
            staging = scratch / target.name
            if is_folder:
                staging.mkdir()
        except OSError as error:
            raise UsageError(
                f"cannot write to --to {target} ({error.strerror or error}); use another path"
            ) from None
        yield staging
        _replace(target, staging)
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)
        with contextlib.suppress(OSError):  # after a success they are not empty
            for parent in made:
                parent.rmdir()


def _check_contents(folder: Path) -> None:
    contents = {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}
    if not contents:
        return
    try:
        known = set(json.loads((folder / RECORD).read_text("utf-8"))["files"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UsageError(
            f"expected a new folder or an earlier export for --to, got {folder}; use another path"
        ) from None
    others = sorted(contents - known - {RECORD})
    if others:
        raise UsageError(
            f"expected only an earlier export in --to {folder}, got also {others[0]}; move that"
            " file, or use another path"
        )


def _replace(target: Path, staging: Path) -> None:
    """Move the new file or folder to the target; restore an earlier folder if the move fails."""
    if not target.is_dir():
        staging.replace(target)
        return
    earlier = staging.with_name(f"{staging.name}.earlier")
    target.rename(earlier)
    try:
        staging.rename(target)
    except OSError:
        earlier.rename(target)
        raise
