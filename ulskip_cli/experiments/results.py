"""The files of a results folder `results/NAME/`; a killed process loses nothing that was already
written.

runs.jsonl            one row per run, appended
generations/ID.jsonl  the answer to every example; ID.partial.jsonl for an unfinished run
generations.zip       files of generations/, which a folder in a repository packs into one
logs/ID.log           the traceback of a run that failed
table.md, table.csv   made from the rows (see `report`)
.locks/               locks of writers and of running points
"""

import contextlib
import json
import sys
import zipfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from ulskip_cli.core.config_schema import Config
from ulskip_cli.core.errors import UsageError, one_line
from ulskip_cli.core.files import (
    JsonObject,
    append_line,
    check_writable,
    lock,
    user_path,
    write_atomic,
)
from ulskip_cli.experiments.record import Record, read
from ulskip_cli.tasks.example_files import read_objects

MAX_REFUSED = 5  # refused lines of a folder that are named
ANSWER_KEYS = ("hypothesis", "reference", "source")


class ResultsFolder:
    """The folder of one experiment. It is created on the first write."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def of(cls, config: Config) -> "ResultsFolder":
        """Return the folder that a configuration names."""
        folder = user_path(config.results_dir, "results_dir") / config.name
        return cls(user_path(folder, "results_dir and name"))

    def check_writable(self) -> None:
        """Raise UsageError before a long run if the folder cannot be created or written to."""
        check_writable(self.path, "results_dir")

    @property
    def runs_path(self) -> Path:
        """The path of runs.jsonl."""
        return self.path / "runs.jsonl"

    def records(self, *, warn: bool = False) -> list[Record]:
        """Return the newest record of every point, failed points included; refused lines are
        skipped, with warnings about the first of them if requested.
        """
        records, refused = [], []
        for number, line in enumerate(self._lines(), start=1):
            try:
                if line.strip():
                    records.append(read(line))
            except UsageError as error:
                refused.append(f"{self.runs_path}, line {number}: {one_line(str(error))}")
        for message in refused[:MAX_REFUSED] if warn else ():
            print(f"warning: skipped {message}", file=sys.stderr)
        return newest(records)

    def rows(self) -> list[Record]:
        """Return the records of all lines that are not refused, in file order."""
        return [record for line in self._lines() if (record := parse_row(line))]

    def _lines(self) -> list[bytes]:
        return self.runs_path.read_bytes().split(b"\n") if self.runs_path.is_file() else []

    def is_complete(self, record: Record) -> bool:
        """Return True if a record is done and its answers, if it has any, are stored."""
        has_answers = record.num_examples != 0 and record.config.answers
        stored = not has_answers or self.stored_generations(record.id).is_file()
        return record.is_done and stored

    def hold(self, name: str, wait: bool = True) -> contextlib.AbstractContextManager[bool]:
        """Lock a point or another part of the folder, after the process that holds it. Without
        `wait`, the context value is True in only one process, also across machines that share the
        folder.
        """
        return lock(self.lock_path(name), wait)

    def lock_path(self, name: str) -> Path:
        """Return the path of a lock, which exists if a process has locked the part before."""
        return self.path / ".locks" / f"{name}.lock"

    def generations_path(self, run_id: str) -> Path:
        """Return the path of a point's generations."""
        return self.path / "generations" / f"{run_id}.jsonl"

    def stored_generations(self, run_id: str) -> Path | zipfile.Path:
        """Return the file of a point's generations, or that in the archive of a folder in a
        repository.
        """
        path, archive = self.generations_path(run_id), self.path / "generations.zip"
        return path if path.is_file() or not archive.is_file() else zipfile.Path(archive, path.name)

    def checkpoint_path(self, run_id: str) -> Path:
        """Return the path of the file in which an unfinished point stores its finished batches."""
        return self.path / "generations" / f"{run_id}.partial.jsonl"

    def generations(self, run_id: str) -> list[JsonObject]:
        """Return the generations of every example, in the task's order; raise UsageError for an
        invalid line.
        """
        file = self.stored_generations(run_id)
        return read_objects(file, ANSWER_KEYS) if file.is_file() else []

    def save(self, record: Record) -> None:
        """Append the row of a finished run, whose generations are stored. What a killed attempt
        left of its files is removed.
        """
        self.append(record)
        for unfinished in self.path.glob(f"*/.{record.id}.*.tmp"):
            unfinished.unlink(missing_ok=True)

    def save_generations(self, run_id: str, generations: Sequence[JsonObject]) -> None:
        """Write the generations of a point."""
        lines = [json.dumps(generation, ensure_ascii=False) + "\n" for generation in generations]
        write_atomic(self.generations_path(run_id), "".join(lines))

    def append(self, record: Record) -> None:
        """Append a row, which replaces earlier rows of the same point; raise StorageError if the
        folder cannot be written.
        """
        with self.hold("rows"):
            append_line(self.runs_path, json.dumps(record.to_row(), ensure_ascii=False))


def newest(records: Sequence[Record]) -> list[Record]:
    """Return the newest record of every point, in file order; a failed run does not replace a
    finished one.
    """
    by_id: dict[str, Record] = {}
    for record in records:
        earlier = by_id.get(record.id)
        if record.is_done or not (earlier and earlier.is_done):
            by_id.pop(record.id, None)
            by_id[record.id] = record
    # A point whose data could not be read has its identity as identifier; a later run with its data
    # replaces that record.
    last = {record.identity: record.id for record in by_id.values()}
    done = {record.identity for record in by_id.values() if record.is_done}
    return [
        record
        for record in by_id.values()
        if record.is_done
        or (
            record.id == last[record.identity]
            and not (record.id == record.identity and record.id in done)
        )
    ]


@lru_cache(maxsize=4096)
def parse_row(line: bytes) -> Record | None:
    """Return the record in a line of runs.jsonl, or None if the line is refused."""
    try:
        return read(line)
    except UsageError:
        return None
