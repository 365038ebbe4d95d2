"""Score stored generations again without a model, also by other metrics (`ulskip score`)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ulskip_cli.core.config import stored_choice
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.files import JsonObject
from ulskip_cli.core.task import Task
from ulskip_cli.experiments.record import Record
from ulskip_cli.experiments.results import ANSWER_KEYS, ResultsFolder
from ulskip_cli.tasks import metrics
from ulskip_cli.tasks.metrics import ScoredTexts

SCORE_ERROR = 1e-9


@dataclass(frozen=True)
class RescoredRun:
    """A stored row, and the same row with new scores."""

    stored: Record
    record: Record  # settings and measurements are unchanged

    @property
    def added(self) -> list[str]:
        """The row keys of metrics that the stored row lacked."""
        return [key for key in self.record.scores if key not in self.stored.scores]

    @property
    def changed(self) -> dict[str, tuple[float, float]]:
        """The old and the new value of other scores, by row key."""
        both = ((key, old, self.record.value(key)) for key, old in self.stored.scores.items())
        return {key: (old, new) for key, old, new in both if abs(old - new) > SCORE_ERROR}

    @property
    def has_news(self) -> bool:
        """True if a score or a difference from the full model is new or changed."""
        differs = self.record.vs_baseline != self.stored.vs_baseline
        return bool(self.added or self.changed or differs)


def find_runs(folder: ResultsFolder) -> list[Record]:
    """Find the runs of a results folder; raise UsageError if none has stored generations."""
    records = [record for record in folder.records(warn=True) if record.is_done]
    runs = [record for record in records if _generations(folder, record.id, record)]
    if not runs:
        raise UsageError(
            f"expected a results folder with answers, got '{folder.path}'; name another folder"
        )
    return runs


def rescore(
    folder: ResultsFolder, record: Record, extra: Sequence[str] = (), allow_code: bool = False
) -> RescoredRun:
    """Score a run's stored generations by its own and the `extra` metrics, unless they have no
    references. Code in answers runs only with `allow_code`, whatever the row says, because rows can
    come from others. Raises UsageError if the row names no task, or one that is not installed.
    """
    if not record.uses("task"):
        raise UsageError(
            f"{folder.runs_path}: expected a task in row {record.id}, got none; repeat the run to"
            " score it"
        )
    task: Task = stored_choice("task", record.config.task.non_defaults())
    answers = _generations(folder, record.id, record)
    full = _generations(folder, record.baseline_id, record) if record.baseline_id else []
    if not all(answer["reference"] for answer in answers):
        return RescoredRun(record, record)
    texts = _texts(answers)
    if len(full) == len(answers):  # else the baseline's are not stored
        texts = replace(texts, full=_texts(full).hypotheses)
    scoring = task.scoring()
    names = tuple(dict.fromkeys([*scoring.metrics, *extra]))
    scoring = replace(scoring, metrics=names, allow_code=allow_code)
    scores = metrics.compute_scores(scoring, texts)
    rescored = record.replace(
        **scores.values,
        signatures={**record.signatures, **scores.signatures},
        vs_baseline={**record.vs_baseline, **scores.against_full},
    )
    return RescoredRun(record, rescored)


def _generations(folder: ResultsFolder, run_id: str, record: Record) -> list[JsonObject]:
    """Return the generations of a run, as many as `record` has examples, or an empty list if the
    file is missing; raise UsageError if a scored run lacks answers.
    """
    path, answers = folder.stored_generations(run_id), folder.generations(run_id)
    expected = record.num_examples
    is_required = path.is_file() or (run_id == record.id and record.scores)
    if is_required and expected is not None and len(answers) != expected:
        raise UsageError(
            f"{path}: expected {expected} answers, got {len(answers)}; restore the file or repeat"
            " the run"
        )
    return answers


def _texts(answers: Sequence[JsonObject]) -> ScoredTexts:
    hypotheses, references, sources, tests = (
        [answer.get(key, "") for answer in answers] for key in (*ANSWER_KEYS, "test")
    )
    return ScoredTexts(hypotheses, references, sources, tests=tests)
