"""What a run leaves behind: `results/<name>/`, written so that a kill at any moment loses nothing written before.

runs.jsonl            one row a run, appended
generations/ID.jsonl  what was generated for every example
configs/ID.yaml       the resolved configuration
table.md, table.csv   made anew from the rows (see `report`)
"""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ulskip_cli import config as configuration
from ulskip_cli.errors import UsageError
from ulskip_cli.models.facts import fingerprint
from ulskip_cli.schema import Config
from ulskip_cli.tasks.examples import Example

ROW_VERSION = 1
"""Changes when a row's keys change their meaning, or the code such that the same configuration gives another result."""

Row = dict[str, Any]


def point_id(config: Config, examples: Sequence[Example]) -> str:
    """The name of a point: everything that decides its result, the content of data and weights included."""
    data = json.dumps([asdict(example) for example in examples], ensure_ascii=False)
    parts = (str(ROW_VERSION), configuration.identity(config), fingerprint(config.model), data)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


class ResultsFolder:
    """One experiment's folder."""

    def __init__(self, path: Path) -> None:
        """A folder that is there, or is made on the first write."""
        self.path = path

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
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            raise UsageError(f"cannot write results to {self.path} ({error.strerror or error})") from None

    def rows(self) -> list[Row]:
        """All rows, of every point the newest; a line that a crash cut off is passed over."""
        newest: dict[str, Row] = {}
        for row in read_jsonl(self.path / "runs.jsonl"):
            newest.pop(row["id"], None)
            newest[row["id"]] = row
        return list(newest.values())

    def row(self, point: str) -> Row | None:
        """The newest row of a point, if its generations are there too."""
        found = next((row for row in self.rows() if row["id"] == point), None)
        return found if found and self.generations_path(point).is_file() else None

    def generations_path(self, point: str) -> Path:
        """Where a point's generations are."""
        return self.path / "generations" / f"{point}.jsonl"

    def generations(self, point: str) -> list[Row]:
        """Generations of every example, in the task's order."""
        return read_jsonl(self.generations_path(point))

    def save(self, config: Config, row: Row, generations: Sequence[Row] | None = None) -> None:
        """Write a finished run; the row last, so that a row means that everything is there."""
        write_whole(self.path / "configs" / f"{row['id']}.yaml", configuration.to_yaml(config))
        if generations is not None:
            self.keep_generations(row["id"], generations)
        self.append(row)

    def keep_generations(self, point: str, generations: Sequence[Row]) -> None:
        """Write what a point generated; without a row it can be scored as a file."""
        lines = [json.dumps(generation, ensure_ascii=False) + "\n" for generation in generations]
        write_whole(self.generations_path(point), "".join(lines))

    def remove_if_empty(self) -> None:
        """Leave no folder behind in which nothing was written."""
        with contextlib.suppress(OSError):
            self.path.rmdir()

    def append(self, row: Row) -> None:
        """A row that takes the place of an earlier one of the same point."""
        append_line(self.path / "runs.jsonl", json.dumps(row, ensure_ascii=False))


def read_jsonl(path: Path) -> list[Row]:
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


def read_object(path: Path) -> Row | None:
    """The object in a file; None where there is none that can be read."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all: a temporary file, then a rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)


def append_line(path: Path, line: str) -> None:
    """Append one line in one write and flush it; a line that an earlier crash cut off is ended first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as stream:
        if stream.tell() > 0:
            stream.seek(-1, os.SEEK_END)
            if stream.read(1) != b"\n":
                line = "\n" + line
        stream.write(f"{line}\n".encode())
        stream.flush()
        os.fsync(stream.fileno())
