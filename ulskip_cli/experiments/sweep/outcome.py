"""The records and failures of many points, and `run_each`, which runs points one after another
without resuming.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ulskip_cli.core.errors import RunError, StorageError
from ulskip_cli.core.progress import ProgressCallback
from ulskip_cli.experiments.preflight import ResolvedPoint
from ulskip_cli.experiments.record import Record, Row
from ulskip_cli.experiments.results import ResultsFolder
from ulskip_cli.experiments.sweep.jobs import failure_reason


@dataclass
class SweepOutcome:
    """The records and failures of a grid's points."""

    num_requested: int
    records: dict[str, Record] = field(
        default_factory=dict
    )  # by identifier, in the order of the points, with baselines
    failures: list[str] = field(default_factory=list)  # one line for every failed point

    def add(self, records: Sequence[Record]) -> None:
        """Add the records of a point; a repeated record moves to the end."""
        for record in records:
            self.records.pop(record.id, None)
            self.records[record.id] = record

    def as_json(self) -> Row:
        """Return the object that `--json` prints: the row of a single point, or all rows and
        failures.
        """
        rows = [record.to_row() for record in self.records.values()]
        return rows[-1] if self.num_requested == 1 else {"rows": rows, "failed": self.failures}

    def check(self) -> None:
        """Raise RunError if a point failed."""
        if self.failures:
            raise RunError(
                f"{len(self.failures)} of {self.num_requested} points failed, the first:"
                f" {self.failures[0]}"
            )


class GridProgress(ProgressCallback, Protocol):
    """Progress of points that run one after another."""

    def point(self, number: int, total: int) -> None:
        """Report the following phases as phases of point `number` of `total`."""

    def note(self, text: str) -> None:
        """Show a line to the user."""


def run_each(
    points: Sequence[ResolvedPoint],
    run_point: Callable[[ResolvedPoint], list[Record]],
    progress: GridProgress,
) -> SweepOutcome:
    """Run points one after another; a failed point does not stop the others. If there is only one
    point, its error is raised.

    `run_point` stores a point's records and returns them, the baseline first and the point's own
    record last.
    """
    folders = {
        folder.path: folder for folder in (ResultsFolder.of(point.config) for point in points)
    }
    for folder in folders.values():
        folder.check_writable()
    outcome = SweepOutcome(len(points))
    try:
        for folder in folders.values():
            if moved := folder.quarantine_corrupt_lines():
                progress.note(moved)
        for number, point in enumerate(points, start=1):
            if len(points) > 1:
                progress.point(number, len(points))
            try:
                outcome.add(run_point(point))
            except Exception as error:
                if len(points) == 1 or isinstance(error, StorageError):
                    raise
                label = f"{point.config.strategy.name} ratio {point.config.ratio:g}"
                outcome.failures.append(f"{label}: {failure_reason(error)}")
    finally:
        for folder in folders.values():
            folder.remove_if_empty()
    return outcome
