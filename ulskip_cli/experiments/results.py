"""The files of a results folder `results/NAME/`; a killed process loses nothing that was already written.

runs.jsonl            one row per run, appended
generations/ID.jsonl  the answer to every example; ID.partial.jsonl for an unfinished run
configs/ID.yaml       the resolved configuration
logs/ID.log           the traceback of a run that failed
table.md, table.csv   made from the rows (see `report`)
.locks/               locks of writers and of running points
"""

import contextlib
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ulskip_cli.core import config as configuration
from ulskip_cli.core.config_schema import Config
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.files import append_line, lock, read_jsonl, try_lock, user_path, write_atomic
from ulskip_cli.experiments import tracking
from ulskip_cli.experiments.record import Row, RunRecord, is_done, upgrade_row

BROKEN_FILE = "runs.broken.jsonl"


class ResultsFolder:
    """The folder of one experiment. It is created on the first write."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._is_new = False

    @classmethod
    def of(cls, config: Config) -> "ResultsFolder":
        """Return the folder that a configuration names."""
        return cls(user_path(config.results_dir, "results_dir") / config.name)

    def check_writable(self) -> None:
        """Create the folder before a long run; raise UsageError if the folder cannot be created or written to."""
        try:
            self._is_new = not self.path.exists()
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
            if self.runs_path.exists():
                self.runs_path.open("ab").close()
        except OSError as error:
            raise UsageError(
                f"cannot write results to {self.path} ({error.strerror or error}); set another results_dir=DIR"
            ) from None

    def remove_if_empty(self) -> None:
        """Remove the folder if `check_writable` created the folder and it is still empty."""
        if self._is_new:
            with contextlib.suppress(OSError):
                self.path.rmdir()

    @property
    def runs_path(self) -> Path:
        """The path of runs.jsonl."""
        return self.path / "runs.jsonl"

    def rows(self) -> list[Row]:
        """Return the newest row of every point, also of failed points; unreadable lines are skipped."""
        return self.rows_and_broken()[0]

    def rows_and_broken(self) -> tuple[list[Row], int]:
        """Return the newest row of every point and the number of unreadable lines."""
        if not self.runs_path.is_file():
            return [], 0
        lines = [line for line in self.runs_path.read_text("utf-8", errors="replace").split("\n") if line.strip()]
        rows = [row for line in lines if (row := parse_row(line)) is not None]
        return newest_rows(rows), len(lines) - len(rows)

    def record(self, run_id: str, accept: Callable[[RunRecord], bool] = lambda record: True) -> RunRecord | None:
        """Return a point's newest finished record that `accept` accepts; None if no record or no generations are found."""
        if not self.generations_path(run_id).is_file():
            return None
        finished = (row for row in reversed(read_jsonl(self.runs_path)) if row.get("id") == run_id and is_done(row))
        return next((record for row in finished if accept(record := RunRecord.from_row(row))), None)

    def quarantine_corrupt_lines(self) -> str | None:
        """Move unreadable lines, e.g. after a crash, from runs.jsonl to another file; return a message if lines were moved."""
        if not self.runs_path.is_file() or not _corrupt_lines(self.runs_path.read_bytes()):
            return None
        with self._lock_rows():
            content = self.runs_path.read_bytes()
            corrupt = _corrupt_lines(content)
            if not corrupt:
                return None
            for line in corrupt:
                append_line(self.path / BROKEN_FILE, line.decode("utf-8", errors="replace"))
            whole = [line for line in content.split(b"\n") if line.strip() and line not in set(corrupt)]
            write_atomic(self.runs_path, b"".join(line + b"\n" for line in whole))
        return (
            f"moved {len(corrupt)} unreadable line{'s' * (len(corrupt) > 1)} of {self.runs_path}, probably cut by a crash, to "
            f"{BROKEN_FILE}; {len(whole)} rows are intact, and a sweep repeats missing points"
        )

    def _lock_rows(self) -> contextlib.AbstractContextManager[None]:
        return lock(self.path / ".locks" / "rows.lock")

    def claim(self, run_id: str) -> contextlib.AbstractContextManager[bool]:
        """Lock a point; the context value is True in only one process, also across machines that share the folder."""
        return try_lock(self.path / ".locks" / f"{run_id}.lock")

    def generations_path(self, run_id: str) -> Path:
        """Return the path of a point's generations."""
        return self.path / "generations" / f"{run_id}.jsonl"

    def checkpoint_path(self, run_id: str) -> Path:
        """Return the path of the file in which an unfinished point stores its finished batches."""
        return self.path / "generations" / f"{run_id}.partial.jsonl"

    def generations(self, run_id: str) -> list[dict[str, Any]]:
        """Return the generations of every example, in the task's order."""
        return read_jsonl(self.generations_path(run_id))

    def save(self, config: Config, record: RunRecord, generations: Sequence[dict[str, Any]] | None = None) -> None:
        """Write a finished run and log it to the tracker. The row is written last: if it exists, all other files exist."""
        write_atomic(self.path / "configs" / f"{record.id}.yaml", configuration.to_yaml(config))
        if generations is not None:
            self.save_generations(record.id, generations)
        self.append(record)
        tracking.log_record(config, record, self.path)

    def save_generations(self, run_id: str, generations: Sequence[dict[str, Any]]) -> None:
        """Write the generations of a point; `ulskip score` can score the file even without a row."""
        lines = [json.dumps(generation, ensure_ascii=False) + "\n" for generation in generations]
        write_atomic(self.generations_path(run_id), "".join(lines))

    def append(self, record: RunRecord) -> None:
        """Append a row, which replaces earlier rows of the same point; raise StorageError if the folder cannot be written."""
        line = json.dumps(record.to_row(), ensure_ascii=False)
        with self._lock_rows():
            append_line(self.runs_path, line)


def newest_rows(rows: Sequence[Row]) -> list[Row]:
    """Return the newest row of every point, in file order; a failed run does not replace a finished row."""
    newest: dict[str, Row] = {}
    for row in rows:
        point = row.get("id")
        if not isinstance(point, str) or (point in newest and is_done(newest[point]) and not is_done(row)):
            continue
        newest.pop(point, None)
        newest[point] = row
    # A point whose data could not be read has its identity as identifier; a later run with its data replaces that row.
    last = {row["identity"]: row["id"] for row in newest.values() if row.get("identity")}
    done = {row.get("identity") for row in newest.values() if is_done(row)}

    def counts(row: Row) -> bool:
        identity = row.get("identity") or row["id"]
        return last.get(identity, row["id"]) == row["id"] and not (row["id"] == identity and identity in done)

    return [row for row in newest.values() if is_done(row) or counts(row)]


def parse_row(line: str | bytes) -> Row | None:
    """Parse a line of runs.jsonl and upgrade its key names to this version; return None if the line is not a row."""
    try:
        found = json.loads(line)
    except ValueError:
        return None
    is_row = isinstance(found, dict) and all(isinstance(found.get(key), str) for key in ("id", "strategy"))
    return upgrade_row(found) if is_row else None


def _corrupt_lines(content: bytes) -> list[bytes]:
    return [line for line in content.split(b"\n") if line.strip() and parse_row(line) is None]
