"""Points one after another, with bars; one that fails does not stop the others."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ulskip_cli.core.config_schema import Config
from ulskip_cli.core.errors import RunError, StorageError
from ulskip_cli.core.progress import ProgressCallback
from ulskip_cli.experiments.results import ResultsFolder, Row

RunPoint = Callable[[Config], list[Row]]


@dataclass
class SweepOutcome:
    """What came of a grid.

    Attributes:
        size: the number of points.
        rows: by id, in the order of the points; a point's baseline among them.
        failures: a line for every point that failed.
    """

    size: int
    rows: dict[str, Row] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def told(self) -> Row:
        """As `--json` prints it: the row of a single point, all rows and failures of several."""
        rows = list(self.rows.values())
        return rows[-1] if self.size == 1 else {"rows": rows, "failed": self.failures}

    def check(self) -> None:
        """Say that points failed.

        Raises:
            RunError: some did.
        """
        if self.failures:
            raise RunError(f"{len(self.failures)} of {self.size} points failed, the first: {self.failures[0]}")


def run(points: Sequence[Config], start: Callable[[ProgressCallback], RunPoint]) -> SweepOutcome:
    """Run the points of a grid. An error of a single point is raised.

    Args:
        points: in the order that they are run in.
        start: given who watches, what runs a point and returns its rows, its own last; called once, under the bars, since
            it may import torch.
    """
    from ulskip_cli.cli.progress_bars import ProgressBars

    folders = {folder.path: folder for folder in map(ResultsFolder.of, points)}
    for folder in folders.values():
        folder.check_writable()
    outcome = SweepOutcome(len(points))
    try:
        with ProgressBars() as bars:
            for folder in folders.values():
                if broken := folder.quarantine_corrupt_lines():
                    bars.note(broken)
            run_point = start(bars)
            for number, point in enumerate(points, start=1):
                if len(points) > 1:
                    bars.point(number, len(points))
                try:
                    rows = run_point(point)
                except Exception as error:
                    if len(points) == 1 or isinstance(error, StorageError):
                        raise
                    outcome.failures.append(f"{_named(point)}: {_reason(error)}")
                    continue
                for row in rows:
                    outcome.rows.pop(row["id"], None)
                    outcome.rows[row["id"]] = row
    finally:
        for folder in folders.values():
            folder.remove_if_empty()
    return outcome


def _named(point: Config) -> str:
    return f"{point.strategy['name']} ratio {point.ratio:g}"


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
