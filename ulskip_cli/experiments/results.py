"""What a run leaves behind: `results/<name>/`, written so that a kill at any moment loses nothing written before.

runs.jsonl            one row a run, appended
generations/ID.jsonl  what was generated for every example; ID.partial.jsonl: of a run that is not done
configs/ID.yaml       the resolved configuration
logs/ID.log           the traceback of a point that failed
table.md, table.csv   made anew from the rows (see `report`)
.locks/               who writes, and who runs which point
"""

import contextlib
import hashlib
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ulskip_cli.core import config as configuration
from ulskip_cli.core.config_schema import Config
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.files import append_line, lock, read_jsonl, try_lock, write_atomic
from ulskip_cli.core.model_metadata import fingerprint
from ulskip_cli.tasks.example import Example

ROW_VERSION = 1
"""Changes when a row's keys change their meaning, or the code such that the same configuration gives another result."""

DONE, NOT_APPLICABLE, FAILED = "done", "n/a", "failed"
BROKEN = "runs.broken.jsonl"

Row = dict[str, Any]


def is_done(row: Row) -> bool:
    """Whether a row is of a finished run; rows from before there were others have no status."""
    return bool(row.get("status", DONE) == DONE)


def point_id(config: Config, examples: Sequence[Example]) -> str:
    """The name of a point: everything that decides its result, the content of data and weights included."""
    return point_of(config, data_text(examples))


def point_of(config: Config, data: str) -> str:
    """The same for a `data_text`, which many points share."""
    parts = (str(ROW_VERSION), configuration.identity(config), fingerprint(config.model), data)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def data_text(examples: Sequence[Example]) -> str:
    """Examples as a point's name reads them."""
    return json.dumps([asdict(example) for example in examples], ensure_ascii=False)


class ResultsFolder:
    """One experiment's folder."""

    def __init__(self, path: Path) -> None:
        """A folder that is there, or is made on the first write."""
        self.path = path
        self._is_new = False

    @classmethod
    def of(cls, config: Config) -> "ResultsFolder":
        """The folder that a configuration names."""
        return cls(Path(config.results_dir) / config.name)

    def check_writable(self) -> None:
        """Make the folder now rather than find out after hours that it cannot be.

        Raises:
            UsageError: it cannot be made or written to.
        """
        try:
            self._is_new = not self.path.exists()
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
            if self.runs_path.exists():
                self.runs_path.open("ab").close()
        except OSError as error:
            raise UsageError(f"cannot write results to {self.path} ({error.strerror or error})") from None

    @property
    def runs_path(self) -> Path:
        """The file of rows."""
        return self.path / "runs.jsonl"

    def rows(self) -> list[Row]:
        """All rows, of every point the newest, those that failed or do not apply among them; broken lines are passed over."""
        return self.rows_and_broken()[0]

    def rows_and_broken(self) -> tuple[list[Row], int]:
        """The same, and the number of lines that were passed over."""
        if not self.runs_path.is_file():
            return [], 0
        lines = [line for line in self.runs_path.read_text("utf-8", errors="replace").split("\n") if line.strip()]
        rows = [row for line in lines if (row := row_of(line)) is not None]
        return current(rows), len(lines) - len(rows)

    def row(self, point: str, counts: Callable[[Row], bool] = lambda row: True) -> Row | None:
        """The newest finished row of a point that counts, if the point's generations are stored; all its rows share them."""
        rows = read_jsonl(self.runs_path) if self.generations_path(point).is_file() else []
        return next((row for row in reversed(rows) if row.get("id") == point and is_done(row) and counts(row)), None)

    def quarantine_corrupt_lines(self) -> str | None:
        """Move lines that are no rows, as a crash leaves them, from the rows' file into another; a line that tells of it.

        Raises:
            StorageError: the folder takes no more.
        """
        if not self.runs_path.is_file() or not _broken(self.runs_path.read_bytes()):
            return None
        with self._writing():
            content = self.runs_path.read_bytes()
            broken = _broken(content)
            if not broken:
                return None
            for line in broken:
                append_line(self.path / BROKEN, line.decode("utf-8", errors="replace"))
            whole = [line for line in content.split(b"\n") if line.strip() and line not in set(broken)]
            write_atomic(self.runs_path, b"".join(line + b"\n" for line in whole))
        lines = f"{len(broken)} line{'s' * (len(broken) > 1)} of {self.runs_path} could not be read"
        return (
            f"{lines}, as after a crash, and {'are' if len(broken) > 1 else 'is'} kept in {BROKEN}; {len(whole)} rows are whole"
        )

    def _writing(self) -> contextlib.AbstractContextManager[None]:
        return lock(self.path / ".locks" / "rows.lock")

    def claim(self, point: str) -> contextlib.AbstractContextManager[bool]:
        """Whether this process may run a point: as long as it does, no other may, on whatever machine."""
        return try_lock(self.path / ".locks" / f"{point}.lock")

    def generations_path(self, point: str) -> Path:
        """Where a point's generations are."""
        return self.path / "generations" / f"{point}.jsonl"

    def partial_path(self, point: str) -> Path:
        """Where the finished batches of an unfinished point are."""
        return self.path / "generations" / f"{point}.partial.jsonl"

    def generations(self, point: str) -> list[Row]:
        """Generations of every example, in the task's order."""
        return read_jsonl(self.generations_path(point))

    def save(self, config: Config, row: Row, generations: Sequence[Row] | None = None) -> None:
        """Write a finished run; the row last, so that a row means that everything is there."""
        write_atomic(self.path / "configs" / f"{row['id']}.yaml", configuration.to_yaml(config))
        if generations is not None:
            self.keep_generations(row["id"], generations)
        self.append(row)

    def keep_generations(self, point: str, generations: Sequence[Row]) -> None:
        """Write what a point generated; without a row it can be scored as a file."""
        lines = [json.dumps(generation, ensure_ascii=False) + "\n" for generation in generations]
        write_atomic(self.generations_path(point), "".join(lines))

    def remove_if_empty(self) -> None:
        """Remove the folder if `check_writable` created it and nothing was written into it since."""
        if self._is_new:
            with contextlib.suppress(OSError):
                self.path.rmdir()

    def append(self, row: Row) -> None:
        """A row that takes the place of an earlier one of the same point; one writer at a time.

        Raises:
            StorageError: the folder takes no more.
        """
        line = json.dumps(row, ensure_ascii=False)
        with self._writing():
            append_line(self.runs_path, line)


def current(rows: Sequence[Row]) -> list[Row]:
    """Of every point the row that counts, in the order of their coming: the newest, but a finished point stays finished."""
    newest: dict[str, Row] = {}
    for row in rows:
        point = row.get("id")
        if not isinstance(point, str) or (point in newest and is_done(newest[point]) and not is_done(row)):
            continue
        newest.pop(point, None)
        newest[point] = row
    # A point whose data could not be read goes by its identity until they can.
    last = {row["identity"]: row["id"] for row in newest.values() if "identity" in row}
    done = {row.get("identity") for row in newest.values() if is_done(row)}

    def counts(row: Row) -> bool:
        identity = row.get("identity", row["id"])
        return last.get(identity, row["id"]) == row["id"] and not (row["id"] == identity and identity in done)

    return [row for row in newest.values() if is_done(row) or counts(row)]


def _broken(content: bytes) -> list[bytes]:
    """The lines that are no rows."""
    return [line for line in content.split(b"\n") if line.strip() and row_of(line) is None]


def row_of(line: str | bytes) -> Row | None:
    """The row that a line is; None where it is none."""
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) and all(isinstance(found.get(key), str) for key in ("id", "strategy")) else None
