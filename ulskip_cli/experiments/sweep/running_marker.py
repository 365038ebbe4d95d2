"""Marker files of running jobs, from which other processes read which jobs run and which workers died."""

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ulskip_cli.core.errors import StorageError
from ulskip_cli.core.files import read_object, write_atomic
from ulskip_cli.core.progress import ReportProgress
from ulskip_cli.experiments.record import RunRecord
from ulskip_cli.experiments.results import ResultsFolder
from ulskip_cli.experiments.sweep.jobs import Job

UPDATE_SECONDS = 1.0


class RunningMarker:
    """A `ProgressCallback` that writes a worker's progress into the marker of its running job."""

    def __init__(self, folder: ResultsFolder) -> None:
        self._folder = folder
        self._path: Path | None = None
        self._written_at = 0.0

    def job_started(self, job: Job) -> None:
        """Write the progress of this job into its marker from now on."""
        self._path = marker_path(self._folder, job)

    def job_settled(self, job: Job, record: RunRecord | None, ran: bool) -> None:
        """Stop writing the job's progress."""
        self._path = None

    def phase(self, label: str, total: int) -> ReportProgress:
        """Write the phase of the running job."""
        self._write({"phase": label, "done": 0, "total": total})
        return lambda done, note="": self._write({"phase": label, "done": done, "total": total})

    def _write(self, progress: dict[str, Any]) -> None:
        if self._path and time.monotonic() - self._written_at >= UPDATE_SECONDS:
            self._written_at = time.monotonic()
            _replace(self._path, {**read_marker(self._path), **progress})


@contextlib.contextmanager
def marked(folder: ResultsFolder, job: Job, token: str) -> Iterator[int]:
    """Keep a marker file while a job runs, and yield the number of the attempt. A leftover file means that a worker died."""
    path = marker_path(folder, job)
    before = read_marker(path)
    attempt = before.get("attempt", 0) + 1 if before.get("token") == token else 1
    _replace(path, {"token": token, "attempt": attempt, "worker": os.getpid()})
    try:
        yield attempt
    finally:
        with contextlib.suppress(OSError):
            path.unlink()


def marker_path(folder: ResultsFolder, job: Job) -> Path:
    """Return the path of a running job's marker."""
    return folder.path / ".locks" / f"{job.id}.json"


def read_marker(path: Path) -> dict[str, Any]:
    """Read a marker file; return an empty dict if the file is missing or unreadable."""
    return read_object(path) or {}


def running_jobs(folder: ResultsFolder, jobs: list[Job], token: str) -> list[str]:
    """Return one line per running job of a sweep, with its phase."""
    markers = [(job.label, read_marker(marker_path(folder, job))) for job in jobs]
    return [
        f"{label}: {marker.get('phase', 'start')} {marker.get('done', 0)}/{marker['total']}" if marker.get("total") else label
        for label, marker in markers
        if marker.get("token") == token
    ]


def _replace(path: Path, marker: dict[str, Any]) -> None:
    """Replace a marker atomically; errors are ignored, because a sweep also works without markers."""
    with contextlib.suppress(StorageError):
        write_atomic(path, json.dumps(marker), sync=False)
