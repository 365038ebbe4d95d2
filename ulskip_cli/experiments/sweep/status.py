"""Which jobs of a sweep are settled, by the rows of their folder, whoever writes them; and how long the rest may take."""

import os
from collections.abc import Callable, Sequence
from itertools import product
from statistics import median

from ulskip_cli.core.errors import NotApplicable
from ulskip_cli.core.files import read_jsonl
from ulskip_cli.experiments.results import FAILED, NOT_APPLICABLE, ResultsFolder, Row, is_done, row_of
from ulskip_cli.experiments.sweep.jobs import Job

DONE, TO_DO = "done", "to do"
# What a guess goes by, from the rows most like a point to those least, runs over as many examples before any others.
_LIKE = (
    ("model", "task", "decoding", "batch_size", "strategy"),
    ("model", "task", "decoding", "batch_size"),
    ("model", "task", "decoding"),
    ("model", "task"),
    ("model",),
)


class SweepStatus:
    """The rows of a folder, read as they come."""

    def __init__(
        self, folder: ResultsFolder, is_like_here: Callable[[Row], bool], force: bool = False, since: int | None = None
    ) -> None:
        """Read what is there.

        Args:
            folder: of the sweep.
            is_like_here: whether a row's times are good for this sweep.
            force: only rows that come from now on count.
            since: how many rows there were when the sweep began, for a worker that joins it; None: as many as now.
        """
        self.folder = folder
        self.force = force
        self._is_like_here = is_like_here
        self._rows: dict[str, list[tuple[int, Row]]] = {}
        self._file: int | None = None  # which one was read; it is replaced where broken lines are set aside
        self._at = self._count = 0  # bytes and rows read so far
        self.refresh()
        self.since = self._count if since is None else since

    def refresh(self) -> None:
        """Take in the lines that came since."""
        try:
            with self.folder.runs_path.open("rb") as stream:
                file = os.fstat(stream.fileno()).st_ino
                if file != self._file:
                    self._file, self._at, self._count, self._rows = file, 0, 0, {}
                stream.seek(self._at)
                new = stream.read()
        except OSError:
            return
        for line in new[: new.rfind(b"\n") + 1].splitlines(keepends=True):
            self._at += len(line)
            row = row_of(line)
            if row is not None:
                self._rows.setdefault(row["id"], []).append((self._count, row))
                self._count += 1

    def state(self, job: Job) -> str:
        """`done`, `n/a`, `failed` or `to do`: what was found in this sweep, or a finished run whenever it was."""
        if self.done_row(job.id):
            return DONE
        newest = self.newest(job)
        if newest and newest.get("status") == NOT_APPLICABLE and (job.refused or self._fresh(job.id)):
            return NOT_APPLICABLE
        return FAILED if newest and newest.get("status") == FAILED and self._fresh(job.id) else TO_DO

    def newest(self, job: Job) -> Row | None:
        """The last row of a job, however it went."""
        rows = self._rows.get(job.id)
        return rows[-1][1] if rows else None

    def row(self, job: Job) -> Row | None:
        """The row that counts for a job; None where it is to do."""
        return None if self.state(job) == TO_DO else self.done_row(job.id) or self.newest(job)

    def has_none(self, point: str) -> bool:
        """Whether this sweep found that a point has no result."""
        rows = self._rows.get(point, [])
        return bool(rows) and not is_done(rows[-1][1]) and self._fresh(point)

    def any_failed(self, jobs: Sequence[Job]) -> bool:
        """Whether any of a sweep's points failed in it; others may write rows of theirs into the same folder."""
        return any(self.state(job) == FAILED for job in jobs)

    def done_row(self, point: str) -> Row | None:
        """The row of a finished point that counts for this sweep; its generations are there too."""
        for at, row in reversed(self._rows.get(point, ())):
            if is_done(row) and (at >= self.since or not self.force) and (at >= self.since or self._is_like_here(row)):
                return row if self.folder.generations_path(point).is_file() else None
        return None

    def seconds_left(self, jobs: Sequence[Job]) -> tuple[float, int]:
        """A guess for jobs one after another, from runs like them; and the number of those that nothing is known of."""
        guesses = [self._guess(job) for job in jobs]
        return sum(guess for guess in guesses if guess is not None), guesses.count(None)

    def told(self, job: Job) -> tuple[str, float | None, str]:
        """A job's state, the seconds that it took or may take, and why it has no result or how far it is.

        What is refused without being run counts as settled already.
        """
        row, state = self.row(job), self.state(job)
        if state == DONE:
            return state, row.get("point_seconds") if row else None, ""
        if job.refused:
            return (
                NOT_APPLICABLE if isinstance(job.refused, NotApplicable) else FAILED,
                None,
                " ".join(str(job.refused).split()),
            )
        newest = self.newest(job)
        kept = len(read_jsonl(self.folder.partial_path(job.id))) - 1
        notes = [f"{kept} batch{'es' * (kept > 1)} kept"] if kept > 0 else []
        if newest and newest.get("status") == FAILED:
            notes.append(f"failed before: {newest['reason']}")
        return TO_DO, self._guess(job), "; ".join(notes)

    def _guess(self, job: Job) -> float | None:
        wanted = job.failure_row(Exception(), "")
        timed = [row for rows in self._rows.values() for _, row in rows[-1:] if row.get("point_seconds")]
        as_many = [row for row in timed if row.get("config", {}).get("limit") == job.config.limit]
        for known, keys in product((as_many, timed), _LIKE):
            alike = [row["point_seconds"] for row in known if all(row.get(key) == wanted[key] for key in keys)]
            if alike:
                return float(median(alike))
        return None

    def _fresh(self, point: str) -> bool:
        return self._rows[point][-1][0] >= self.since
