"""Store the finished batches of an unfinished run, so that a killed run resumes after its last
finished batch.
"""

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ulskip_cli.core.files import append_line, read_jsonl, write_atomic
from ulskip_cli.engines.base import BatchOutput, DraftStats, ExitStats

# between two fsyncs; a killed process loses no finished batch, a power cut may lose the last second
SYNC_SECONDS = 1.0


def digest(values: Any) -> str:
    """Return a hash of values for an `origin`, 12 hexadecimal digits."""
    return hashlib.sha256(json.dumps(values, default=str).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class FinishedBatch:
    """The stored output of one finished batch, and the run's state after the batch."""

    positions: list[int]  # indices of its prompts in the task
    output: BatchOutput
    batch_size: int  # the size for the next batch, which fits into memory
    peak_memory_bytes: int  # of the run until the end of this batch
    elapsed_seconds: float  # of the run until the end of this batch, over all attempts


class BatchCheckpoints:
    """The finished batches of one unfinished run."""

    def __init__(self, path: Path, origin: dict[str, Any], began: float | None = None) -> None:
        """Read the batches that an earlier attempt stored in `path`.

        `began` is the start of this attempt in seconds of `time.monotonic`; None means now. Batches
        of another `origin` (code and machine) are dropped, because a row has one provenance.
        """
        self._path, self._origin = path, json.loads(json.dumps(origin))
        self._synced_at = time.monotonic()
        self._began = self._synced_at if began is None else began
        lines = read_jsonl(path)
        if not lines or lines[0] != {"origin": self._origin}:
            lines = []
        self._kept = _readable(lines[1:])
        self._begun = bool(lines)

    def batches(self, order: Sequence[int]) -> list[FinishedBatch]:
        """Return the stored batches that match the start of `order` (prompt indices), and delete
        all other stored batches.
        """
        start, valid = 0, []
        for batch in self._kept:
            if list(order[start : start + len(batch.positions)]) != batch.positions:
                break
            valid.append(batch)
            start += len(batch.positions)
        self._kept = valid
        if not self._begun:
            self._path.unlink(missing_ok=True)
        else:
            write_atomic(self._path, "".join(f"{line}\n" for line in self._lines()))
        return valid

    @property
    def elapsed_seconds(self) -> float:
        """The seconds that the run has taken so far, over all attempts."""
        before = self._kept[-1].elapsed_seconds if self._kept else 0.0
        return before + time.monotonic() - self._began

    def add(
        self, positions: Sequence[int], output: BatchOutput, batch_size: int, peak_memory_bytes: int
    ) -> None:
        """Store a finished batch; raise StorageError if the file cannot be written."""
        now = time.monotonic()
        sync = now - self._synced_at >= SYNC_SECONDS
        self._synced_at = now if sync else self._synced_at
        if not self._begun:
            append_line(self._path, json.dumps({"origin": self._origin}), sync=False)
            self._begun = True
        batch = FinishedBatch(
            list(positions), output, batch_size, peak_memory_bytes, self.elapsed_seconds
        )
        append_line(self._path, json.dumps(asdict(batch)), sync=sync)

    def remove(self) -> None:
        """Delete the stored batches, because the run finished or starts over."""
        self._path.unlink(missing_ok=True)
        self._kept, self._begun = [], False

    def _lines(self) -> list[str]:
        return [json.dumps(line) for line in ({"origin": self._origin}, *map(asdict, self._kept))]


def _readable(lines: Sequence[dict[str, Any]]) -> list[FinishedBatch]:
    kept: list[FinishedBatch] = []  # before the first unreadable line
    for line in lines:
        try:
            kept.append(_read(line))
        except (KeyError, TypeError, ValueError, AttributeError):
            break
    return kept


def _read(line: dict[str, Any]) -> FinishedBatch:
    output = line["output"]
    drafts = output["drafts"] and DraftStats(**output["drafts"])
    exits = output["exits"] and ExitStats(
        {int(depth): count for depth, count in output["exits"]["depths"].items()},
        output["exits"]["check_seconds"],
    )
    return FinishedBatch(
        **{**line, "output": BatchOutput(**{**output, "drafts": drafts, "exits": exits})}
    )
