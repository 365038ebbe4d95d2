"""The states of the jobs of a sweep, read from the rows that its workers append."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from ulskip_cli.core import environment
from ulskip_cli.core.errors import NotApplicable
from ulskip_cli.core.files import read_jsonl
from ulskip_cli.experiments.record import DONE, FAILED, NOT_APPLICABLE, Record
from ulskip_cli.experiments.results import ResultsFolder, parse
from ulskip_cli.experiments.sweep.jobs import Job
from ulskip_cli.experiments.sweep.launchers import SHARED

TO_DO = "to do"


@dataclass(frozen=True)
class JobState:
    """The state of one job before a sweep runs."""

    state: str  # `done`, `n/a`, `failed` or `to do`
    note: str = ""  # the reason for no result, or the progress


class SweepStatus:
    """Derives the states of jobs from the rows of a results folder, and reads new rows as they are
    appended.
    """

    def __init__(
        self,
        folder: ResultsFolder,
        launcher: str,
        force: bool = False,
        since: int | None = None,
        quick: bool = False,
    ) -> None:
        """Read the existing rows. With `force`, only rows that this sweep appends count.

        Rows of machines whose times do not compare with this machine's count only for launchers
        that use several machines. `since` is the number of stored rows when the sweep began; None
        means that the sweep begins now. `quick` compares processors alone, which needs no torch.
        """
        self.folder = folder
        self.force = force
        self._launcher, self._quick = launcher, quick
        self._records: dict[str, list[tuple[int, Record]]] = {}
        self._file: int | None = (
            None  # the inode that was read; quarantining corrupt lines replaces the file
        )
        self._offset = self._count = 0
        self.refresh()
        self.since = self._count if since is None else since

    def refresh(self) -> None:
        """Read the lines that were appended since the last call."""
        try:
            with self.folder.runs_path.open("rb") as stream:
                file = os.fstat(stream.fileno()).st_ino
                if file != self._file:
                    self._file, self._offset, self._count, self._records = file, 0, 0, {}
                stream.seek(self._offset)
                new = stream.read()
        except OSError:
            return
        for line in new[: new.rfind(b"\n") + 1].splitlines(keepends=True):
            self._offset += len(line)
            record = parse(line)
            if record is None:
                continue
            self._count += 1
            self._records.setdefault(record.id, []).append((self._count - 1, record))

    def state(self, job: Job) -> str:
        """Return `done`, `n/a`, `failed` or `to do`. Finished runs of earlier sweeps count,
        failures do not.
        """
        if self.finished(job.id):
            return DONE
        newest = self.newest(job)
        if newest and newest.status == NOT_APPLICABLE and (job.refused or self._is_fresh(job.id)):
            return NOT_APPLICABLE
        return FAILED if newest and newest.status == FAILED and self._is_fresh(job.id) else TO_DO

    def newest(self, job: Job) -> Record | None:
        """Return the last record of a job, whatever its status."""
        records = self._records.get(job.id)
        return records[-1][1] if records else None

    def record(self, job: Job) -> Record | None:
        """Return the record that settles a job, or None if the job has to run."""
        return None if self.state(job) == TO_DO else self.finished(job.id) or self.newest(job)

    def has_no_result(self, run_id: str) -> bool:
        """True if the last record of a point in this sweep is failed or not applicable."""
        records = self._records.get(run_id, [])
        return bool(records) and not records[-1][1].is_done and self._is_fresh(run_id)

    def any_failed(self, jobs: Sequence[Job]) -> bool:
        """True if a job failed in this sweep; failures that other sweeps write into the same folder
        do not count.
        """
        return any(self.state(job) == FAILED for job in jobs)

    def finished(self, run_id: str) -> Record | None:
        """Return a point's finished record if this sweep can use it and its generations are stored;
        otherwise None.
        """
        if not self.folder.generations_path(run_id).is_file():
            return None
        for index, record in reversed(self._records.get(run_id, ())):
            is_new = index >= self.since
            if (
                record.is_done
                and (is_new or not self.force)
                and (is_new or self._is_like_here(record))
            ):
                return record
        return None

    def describe(self, job: Job) -> JobState:
        """Return a job's state and its reason or progress; a refused job counts as settled."""
        if self.state(job) == DONE:
            return JobState(DONE)
        if job.refused:
            refused = NOT_APPLICABLE if isinstance(job.refused, NotApplicable) else FAILED
            return JobState(refused, " ".join(str(job.refused).split()))
        newest = self.newest(job)
        num_batches = len(read_jsonl(self.folder.checkpoint_path(job.id))) - 1
        notes = (
            [f"{num_batches} batch{'es' * (num_batches > 1)} finished"] if num_batches > 0 else []
        )
        if newest and newest.status == FAILED:
            notes.append(f"failed before: {newest.reason}")
        return JobState(TO_DO, "; ".join(notes))

    def _is_like_here(self, record: Record) -> bool:
        """Return True if a row counts; in a sweep of one process, the number of threads has to be
        equal too.
        """
        if self._launcher in SHARED:
            return True
        also = ("threads",) if self._launcher == "inline" else ()
        where = record.environment
        if where is None or self._quick:
            return where is not None and environment.is_likely_here(where.model_dump())
        return environment.is_like_here(where.model_dump(), record.device or "cpu", also)

    def _is_fresh(self, run_id: str) -> bool:
        return self._records[run_id][-1][0] >= self.since
