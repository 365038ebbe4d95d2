"""Metrics that score a model's answers, in one registry, `METRICS`, which reports use too.

Start with `scores.py`, then `overlap.py`; a new metric takes such a class, its test and an entry
here. A metric's module is imported when the metric is made.
"""

import pkgutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ulskip_cli.core.errors import UsageError, require_choice
from ulskip_cli.core.options import option
from ulskip_cli.core.task import Scoring
from ulskip_cli.tasks.metrics.scores import Answers, Metric, Scores


@dataclass(frozen=True)
class RowKey:
    """One number that a metric adds to a row, and how reports show it."""

    key: str
    title: str  # in text and plots
    short_title: str = ""  # of a table column; empty: `title`
    number_format: str = ".1f"
    lower_is_better: bool = False
    optional: bool = False  # its column may be left out on a narrow terminal


@dataclass(frozen=True)
class MetricSpec:
    """One entry in the registry of metrics."""

    name: str  # in `task.metrics`
    kind: str  # `module:class` of the metric
    row_keys: tuple[RowKey, ...]
    primary_key: str = ""  # decides in comparisons; empty: the first row key
    in_reports: bool = True  # False: runs code, which a report does not

    @property
    def primary(self) -> str:
        """Row key of the number by which reports compare points."""
        return self.primary_key or self.row_keys[0].key

    def make(self, scoring: Scoring) -> Metric:
        """Make the metric with the settings of a task."""
        metric: Metric = pkgutil.resolve_name(f"{__name__}.{self.kind}")(self.name, scoring)
        return metric


ROUGE_KEYS = (
    RowKey("rouge1", "ROUGE-1", "R-1"),
    RowKey("rouge2", "ROUGE-2", "R-2", optional=True),
    RowKey("rougeL", "ROUGE-L", "R-L"),
    RowKey("rougeLsum", "ROUGE-Lsum", "R-Lsum", optional=True),
)
_REGISTRY = (
    MetricSpec("bleu", "translation:Sacrebleu", (RowKey("bleu", "BLEU"),)),
    MetricSpec("chrf", "translation:Sacrebleu", (RowKey("chrf", "chrF", optional=True),)),
    MetricSpec("ter", "translation:Sacrebleu", (RowKey("ter", "TER", lower_is_better=True),)),
    MetricSpec("rouge", "overlap:Rouge", ROUGE_KEYS, primary_key="rougeL"),
    MetricSpec(
        "exact_match", "overlap:ExactMatch", (RowKey("exact_match", "exact match", "exact"),)
    ),
    MetricSpec(
        "number_match", "overlap:NumberMatch", (RowKey("number_match", "number match", "number"),)
    ),
    MetricSpec("pass_at_1", "code:PassAt1", (RowKey("pass_at_1", "pass@1"),), in_reports=False),
)
METRICS = {spec.name: spec for spec in _REGISTRY}
# The evaluation measures the decode loss with the model itself, so that it has a row key but no
# metric.
DECODE_LOSS = RowKey("decode_loss", "decode loss", number_format=".2f", lower_is_better=True)
# The score of prompts without references.
AGREEMENT = RowKey("agreement", "agreement", number_format=".1%")
# By the key of a row, in the order of tables: the metric, and how reports show the number.
METRIC_OF = {row_key.key: spec for spec in _REGISTRY for row_key in spec.row_keys}
ROW_KEYS = {row_key.key: row_key for spec in _REGISTRY for row_key in spec.row_keys}
ROW_KEYS |= {DECODE_LOSS.key: DECODE_LOSS, AGREEMENT.key: AGREEMENT}


def metrics_option(*default: str) -> Any:
    """Declare the option of a task that names its metrics."""
    return option(default, f"metrics: {', '.join(METRICS)}")


def make_metrics(scoring: Scoring, references: Sequence[str] = ()) -> list[Metric]:
    """Make the metrics that a task names; raise UsageError if a metric cannot score the task's
    references.
    """
    if not scoring.metrics:
        raise UsageError(
            f"expected at least one metric in task.metrics, got none; known: {', '.join(METRICS)}"
        )
    made = [
        METRICS[require_choice("metric", name, METRICS)].make(scoring)
        for name in dict.fromkeys(scoring.metrics)
    ]
    for metric in made:
        metric.check(references)
    return made


def compute_scores(scoring: Scoring, answers: Answers) -> Scores:
    """Score answers with all of a task's metrics."""
    merged = Scores({}, {}, {})
    for metric in make_metrics(scoring):
        part = metric.score(answers)
        merged.values.update(part.values)
        merged.signatures.update(part.signatures)
        merged.against_full.update(part.against_full)
    return merged
