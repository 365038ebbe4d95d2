"""Store the finished batches of an unfinished run, so that a killed run resumes after its last
finished batch.
"""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from ulskip_cli.core.files import append_line, read_jsonl, write_atomic
from ulskip_cli.engines.base import BatchOutput


def digest(values: object) -> str:
    """Return a hash of values, 12 hexadecimal digits."""
    return hashlib.sha256(json.dumps(values, default=str).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class FinishedBatch:
    """The stored output of one finished batch, and the run's state after the batch."""

    positions: list[int]  # indices of its prompts in the task
    output: BatchOutput
    batch_size: int  # the size for the next batch, which fits into memory
    peak_memory_bytes: int  # of the run until the end of this batch
    elapsed_seconds: float  # of the run until the end of this batch, over all attempts


_FINISHED_BATCH = TypeAdapter(FinishedBatch)


class BatchCheckpoints:
    """The finished batches of one unfinished run."""

    def __init__(
        self, path: Path, origin: Mapping[str, object], began: float | None = None
    ) -> None:
        """Read the batches that an earlier attempt stored in `path`.

        `began` is the start of this attempt in seconds of `time.monotonic`; None means now. Batches
        of another `origin` (code and machine) are dropped, because a row has one provenance.
        """
        self._path, self._origin = path, json.dumps({"origin": origin})
        self._began = time.monotonic() if began is None else began
        self._kept: list[FinishedBatch] = []
        lines = read_jsonl(path)
        if lines[:1] == [json.loads(self._origin)]:
            for line in lines[1:]:
                try:
                    self._kept.append(_FINISHED_BATCH.validate_python(line))
                except ValidationError:  # of an earlier version
                    break

    def batches(self, order: Sequence[int]) -> list[FinishedBatch]:
        """Return the stored batches that match the start of `order` (prompt indices), and delete
        all other stored batches.
        """
        start = 0
        for count, batch in enumerate(self._kept):
            if list(order[start : start + len(batch.positions)]) != batch.positions:
                self._kept = self._kept[:count]
                break
            start += len(batch.positions)
        lines = [self._origin, *(_FINISHED_BATCH.dump_json(batch).decode() for batch in self._kept)]
        write_atomic(self._path, "\n".join(lines) + "\n")
        return self._kept

    @property
    def elapsed_seconds(self) -> float:
        """The seconds that the run has taken so far, over all attempts."""
        before = self._kept[-1].elapsed_seconds if self._kept else 0.0
        return before + time.monotonic() - self._began

    def add(
        self, positions: Sequence[int], output: BatchOutput, batch_size: int, peak_memory_bytes: int
    ) -> None:
        """Store a finished batch; raise StorageError if the file cannot be written."""
        batch = FinishedBatch(
            list(positions), output, batch_size, peak_memory_bytes, self.elapsed_seconds
        )
        append_line(self._path, _FINISHED_BATCH.dump_json(batch).decode())

    def remove(self) -> None:
        """Delete the stored batches, because the run finished or starts over."""
        self._path.unlink(missing_ok=True)
        self._kept = []
