"""Write an export into a scratch folder, and replace the target when the export is complete.
Imports no torch.
"""

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ulskip_cli.core.errors import UsageError
from ulskip_cli.experiments.record import Row

RECORD = "ulskip_export.json"
_MARK = b"ulskip"
_HEAD_BYTES = 65536


def check_target(target: Path, is_folder: bool) -> None:
    """Raise UsageError if a target contains anything but an earlier export."""
    if target.is_dir() != is_folder and target.exists():
        kinds = ("folder", "file") if is_folder else ("file", "folder")
        raise UsageError(f"expected a {kinds[0]} for --to, got the {kinds[1]} {target}")
    if target.is_dir():
        _check_contents(target)
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
    made = [parent for parent in target.parents if not parent.exists()]
    scratch: Path | None = None
    try:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            # A new folder, writable by this user only.
            scratch = Path(tempfile.mkdtemp(".ulskip-part", f".{target.name}.", target.parent))
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


def write_record(folder: Path, record: Row) -> Row:
    """Write the record of an export with the files that a later export may replace."""
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    record = {**record, "files": files}
    text = json.dumps(record, indent=1, ensure_ascii=False)
    (folder / RECORD).write_text(f"{text}\n", "utf-8")
    return record


def _check_contents(folder: Path) -> None:
    known: set[str] = set()
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        known = {RECORD, *json.loads((folder / RECORD).read_text("utf-8"))["files"]}
    for path in folder.rglob("*"):
        if not path.is_dir() and str(path.relative_to(folder)) not in known:
            raise UsageError(
                f"expected a new folder or an earlier export for --to, got {folder} with"
                f" {path.name}; use another path"
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
