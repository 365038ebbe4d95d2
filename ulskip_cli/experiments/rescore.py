"""Score stored generations again without a model, also by other metrics (`ulskip score`)."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ulskip_cli.core.config import stored_choice
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.task import Scoring, Task
from ulskip_cli.experiments.record import Compared, Record
from ulskip_cli.experiments.results import ResultsFolder
from ulskip_cli.tasks import metrics
from ulskip_cli.tasks.loading import read_jsonl
from ulskip_cli.tasks.metrics.scores import Answers, Scores

TOLERANCE = 1e-9
_RUN_ID = re.compile(r"[0-9a-f]{12}")


@dataclass(frozen=True)
class RescoredRun:
    """A run with new scores, and the differences between the new scores and the stored row."""

    folder: ResultsFolder
    record: Record
    added: list[str]  # row keys of metrics that the row lacked
    changed: dict[str, tuple[float, float]]  # old and new value by row key

    def save(self) -> None:
        """Append the record to runs.jsonl if a score is new or changed; settings and measurements
        of the row stay unchanged.
        """
        if self.added or self.changed:
            self.folder.append(self.record)


@dataclass(frozen=True)
class ExtraMetrics:
    """Metrics to compute in addition to the run's own metrics, and the models of neural metrics."""

    names: Sequence[str] = ()
    comet_model: str | None = None  # None: the default
    bertscore_model: str | None = None  # None: the default for the language

    def beside(self, scoring: Scoring) -> Scoring:
        """Return a task's scoring with these metrics added.

        Raise UsageError if a row names another model than the default and no option does: a row
        cannot choose the files that this command loads, because loading a checkpoint can run code.
        """
        names = tuple(dict.fromkeys([*scoring.metrics, *self.names]))
        models = {"comet_model": self.comet_model, "bertscore_model": self.bertscore_model}
        for key, model in models.items():
            named = getattr(scoring, key)
            if (
                key.removesuffix("_model") in names
                and model is None
                and named != getattr(Scoring, key)
            ):
                option = f"--{key.replace('_', '-')}"
                raise UsageError(
                    f"expected {option} for a row with task.{key}={named}; give {option}=MODEL if"
                    " you trust it"
                )
        models = {key: model or getattr(Scoring, key) for key, model in models.items()}
        return replace(scoring, metrics=names, **models)  # type: ignore[arg-type]


def find_runs(target: str, results_dir: Path) -> list[tuple[ResultsFolder, Record]]:
    """Find runs by results folder, generations file or run id; raise UsageError if no run has
    stored generations.
    """
    path = Path(target).expanduser()
    if path.is_dir():
        folders, run_id = [ResultsFolder(path)], None
    elif path.suffix == ".jsonl" and path.parent.name == "generations":
        folders, run_id = [ResultsFolder(path.parent.parent)], path.stem
    elif _RUN_ID.fullmatch(target):
        folders, run_id = (
            [ResultsFolder(file.parent) for file in sorted(results_dir.glob("*/runs.jsonl"))],
            target,
        )
    else:
        raise UsageError(
            f"expected a results folder, a run id or a generations file, got '{target}'; "
            f"run ids are searched in {results_dir}/, set another folder with --results-dir"
        )
    runs = [
        (folder, record)
        for folder in folders
        for record in folder.records(warn=True)
        if run_id in (None, record.id)
    ]
    finished = [(folder, record) for folder, record in runs if record.is_done]
    stored = [
        (folder, record)
        for folder, record in finished
        if _stored_generations(folder, record.id, record)
    ]
    if not stored:
        below = sorted(path.glob("*/runs.jsonl")) if run_id is None else []
        missing = "runs without generations" if runs else "no run"
        advice = f"try {below[0].parent}" if below else "check the target and --results-dir"
        raise UsageError(
            f"expected runs with stored generations at '{target}', got {missing}; {advice}"
        )
    scored = [(folder, record) for folder, record in finished if record.scores]
    absent = [
        file
        for folder, record in scored
        if not (file := folder.generations_path(record.id)).is_file()
    ]
    if absent:
        count = f"{len(absent)} of {len(scored)} scored runs"
        raise UsageError(
            f"{absent[0]}: expected a file of answers, got none ({count}); restore it, or score"
            " runs by their id"
        )
    return stored


def rescore(folder: ResultsFolder, record: Record, extra: ExtraMetrics) -> RescoredRun:
    """Score a run's stored generations by its own and the extra metrics; raise UsageError if the
    row has no configuration.
    """
    if "task" not in record.config:
        raise UsageError(
            f"{folder.runs_path}: expected config.task in row {record.id}, got none; repeat the run"
            " to score it"
        )
    task: Task = stored_choice("task", record.config["task"])
    scores = metrics.score(extra.beside(task.scoring()), stored_answers(folder, record))
    before = record.scores
    shared = {key: value for key, value in scores.values.items() if key in before}
    changed = {
        key: (before[key], value)
        for key, value in shared.items()
        if abs(before[key] - value) > TOLERANCE
    }
    rescored = record.replace(
        **scores.values,
        signatures={**record.signatures, **scores.signatures},
        vs_baseline={
            **record.vs_baseline,
            **{key: Compared(**values) for key, values in scores.against_full.items()},
        },
    )
    added = [key for key in scores.values if key not in before]
    return RescoredRun(folder, rescored, added, changed)


def stored_answers(folder: ResultsFolder, record: Record) -> Answers:
    """Return the answers of a run, with the answers of its baseline if the results folder contains
    them.
    """
    generations = _stored_generations(folder, record.id, record)
    baseline = record.baseline_id
    full = _stored_generations(folder, baseline, record) if baseline else []
    return Answers(
        [generation["hypothesis"] for generation in generations],
        [generation["reference"] for generation in generations],
        [generation["source"] for generation in generations],
        [generation["hypothesis"] for generation in full]
        if len(full) == len(generations)
        else None,
    )


def _stored_generations(folder: ResultsFolder, run_id: str, record: Record) -> list[dict[str, Any]]:
    """Return the generations of a run that has as many examples as `record`, or an empty list if
    the file is missing.
    """
    path, answers = folder.generations_path(run_id), folder.generations(run_id)
    expected = record.num_examples
    if path.is_file() and expected is not None and len(answers) != expected:
        raise UsageError(
            f"{path}: expected {expected} answers, got {len(answers)}; restore the file or repeat"
            " the run"
        )
    return answers


def score_file(file: Path, extra: ExtraMetrics, target_language: str | None = None) -> Scores:
    """Score a file of JSON lines with `hypothesis`, `reference` and optional `source`; raise
    UsageError if a key is missing.
    """
    if not extra.names:
        raise UsageError(
            "expected --metric for a file outside a results folder, got none; known:"
            f" {', '.join(metrics.METRICS)}"
        )
    rows = read_jsonl(file)
    for number, row in enumerate(rows, start=1):
        if not {"hypothesis", "reference"} <= row.keys():
            raise UsageError(
                f"{file}, line {number}: expected keys hypothesis and reference, got keys"
                f" {', '.join(row)}"
            )
    answers = Answers(
        [row["hypothesis"] for row in rows],
        [row["reference"] for row in rows],
        [row.get("source", "") for row in rows],
    )
    return metrics.score(extra.beside(Scoring((), target_language)), answers)
