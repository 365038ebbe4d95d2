"""Stored generations scored again, with other metrics too, without a model."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ulskip_cli.core.config import instantiate
from ulskip_cli.core.errors import UsageError
from ulskip_cli.experiments.record import Row, is_done
from ulskip_cli.experiments.results import ResultsFolder
from ulskip_cli.tasks import metrics
from ulskip_cli.tasks.metrics.scores import Answers, Scores, Scoring
from ulskip_cli.tasks.textfile import read_objects

TOLERANCE = 1e-9
_RUN_ID = re.compile(r"[0-9a-f]{12}")


@dataclass(frozen=True)
class RescoredRun:
    """One run's scores beside those that its row had.

    Attributes:
        folder: where the run is.
        row: the row with the new scores.
        added: row keys of metrics that it did not have.
        changed: values that differ from the row's, old and new by row key.
    """

    folder: ResultsFolder
    row: Row
    added: list[str]
    changed: dict[str, tuple[float, float]]

    def save(self) -> None:
        """Append the row where there is something new; the run's own settings and measurements stay as they are."""
        if self.added or self.changed:
            self.folder.append(self.row)


@dataclass(frozen=True)
class ExtraMetrics:
    """What to score with besides a run's own metrics.

    Attributes:
        names: of metrics.
        comet_model: instead of the task's.
        bertscore_model: instead of the task's.
    """

    names: Sequence[str] = ()
    comet_model: str | None = None
    bertscore_model: str | None = None

    def beside(self, scoring: Scoring) -> Scoring:
        """A task's scoring with these added."""
        models = {"comet_model": self.comet_model, "bertscore_model": self.bertscore_model}
        named = {key: value for key, value in models.items() if value is not None}
        return replace(scoring, metrics=tuple(dict.fromkeys([*scoring.metrics, *self.names])), **named)  # type: ignore[arg-type]


def runs_at(target: str, results_dir: Path) -> list[tuple[ResultsFolder, Row]]:
    """The runs that a folder of results, a file of generations in it, or a run's id names.

    Raises:
        UsageError: there are none, or their generations are not there.
    """
    path = Path(target).expanduser()
    if path.is_dir():
        folders, point = [ResultsFolder(path)], None
    elif path.suffix == ".jsonl" and path.parent.name == "generations":
        folders, point = [ResultsFolder(path.parent.parent)], path.stem
    elif _RUN_ID.fullmatch(target):
        folders, point = [ResultsFolder(file.parent) for file in sorted(results_dir.glob("*/runs.jsonl"))], target
    else:
        raise UsageError(
            f"expected a folder of results, a run's id or a file of generations, got '{target}'; "
            f"ids are looked up in {results_dir}/ (--results-dir)"
        )
    found = [(folder, row) for folder in folders for row in folder.rows() if point in (None, row["id"])]
    stored = [(folder, row) for folder, row in found if is_done(row) and folder.generations(row["id"])]
    if not stored:
        below = sorted(path.glob("*/runs.jsonl")) if point is None else []
        missing = "its runs have no stored generations" if found else "there is no run"
        missing += f"; try {below[0].parent}" if below else ""
        raise UsageError(f"nothing to score at '{target}': {missing}")
    return stored


def rescore(folder: ResultsFolder, row: Row, wanted: ExtraMetrics) -> RescoredRun:
    """Score one run's stored generations with its own metrics and the wanted ones."""
    task = instantiate(row["config"]["task"], "task")
    scores = metrics.score(wanted.beside(task.scoring()), stored_answers(folder, row))
    before = {key: row[key] for key in scores.values if row.get(key) is not None}
    changed = {key: (before[key], scores.values[key]) for key in before if abs(before[key] - scores.values[key]) > TOLERANCE}
    again = {
        **row,
        **scores.values,
        "signatures": {**row.get("signatures", {}), **scores.signatures},
        "against_full": {**row.get("against_full", {}), **scores.against_full},
    }
    return RescoredRun(folder, again, [key for key in scores.values if key not in before], changed)


def stored_answers(folder: ResultsFolder, row: Row) -> Answers:
    """What a run generated, and what its baseline did where both are stored."""
    generations = folder.generations(row["id"])
    baseline = row.get("baseline_id")
    full = [one["hypothesis"] for one in folder.generations(baseline)] if baseline else []
    return Answers(
        [one["hypothesis"] for one in generations],
        [one["reference"] for one in generations],
        [one["source"] for one in generations],
        full if len(full) == len(generations) else None,
    )


def score_file(file: Path, wanted: ExtraMetrics, target_language: str | None = None) -> Scores:
    """Score any file of JSON objects with `hypothesis` and `reference`, and `source` for metrics that read it.

    Raises:
        UsageError: a line lacks one of them, or no metric is named.
    """
    if not wanted.names:
        raise UsageError(f"expected --metric for a file that belongs to no run; known: {', '.join(metrics.METRICS)}")
    rows = read_objects(file)
    for number, row in enumerate(rows, start=1):
        if not {"hypothesis", "reference"} <= row.keys():
            raise UsageError(f"{file}, line {number}: expected hypothesis and reference, got keys {', '.join(row)}")
    answers = Answers(
        [row["hypothesis"] for row in rows], [row["reference"] for row in rows], [row.get("source", "") for row in rows]
    )
    return metrics.score(wanted.beside(Scoring((), target_language)), answers)
