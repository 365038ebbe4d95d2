"""Metrics that score a model's answers, in one registry, `METRICS`, which reports use too.

Start with `scores.py`, then `match.py`, the shortest metric; a new metric takes such a module, its
test and an entry here. The package imports only `ulskip_cli.core`, and torch or transformers only
inside functions.
"""

from collections.abc import Iterable, Sequence

from ulskip_cli.core.errors import UsageError, require_choice
from ulskip_cli.core.task import Scoring
from ulskip_cli.tasks.metrics import match, neural, summarization, translation
from ulskip_cli.tasks.metrics.scores import Answers, Metric, MetricSpec, RowKey, Scores

ROUGE_KEYS = (
    RowKey("rouge1", "ROUGE-1", "R-1"),
    RowKey("rouge2", "ROUGE-2", "R-2", leaves=11),
    RowKey("rougeL", "ROUGE-L", "R-L"),
    RowKey("rougeLsum", "ROUGE-Lsum", "R-Lsum", leaves=12),
)
_REGISTRY = (
    MetricSpec("bleu", translation.bleu, (RowKey("bleu", "BLEU"),)),
    MetricSpec("chrf", translation.chrf, (RowKey("chrf", "chrF", leaves=13),)),
    MetricSpec("ter", translation.ter, (RowKey("ter", "TER", lower_is_better=True),)),
    MetricSpec(
        "rouge",
        lambda scoring: summarization.Rouge(scoring.stemmer),
        ROUGE_KEYS,
        primary_key="rougeL",
    ),
    MetricSpec(
        "exact_match",
        lambda scoring: match.ExactMatch(),
        (RowKey("exact_match", "exact match", "exact"),),
    ),
    MetricSpec(
        "comet",
        lambda scoring: neural.Comet(scoring.comet_model),
        (RowKey("comet", "COMET"),),
        is_neural=True,
    ),
    MetricSpec("bertscore", neural.bertscore, (RowKey("bertscore", "BERTScore"),), is_neural=True),
)
METRICS = {spec.name: spec for spec in _REGISTRY}
# The evaluation measures the decode loss with the model itself, so that it has a row key but no
# metric.
DECODE_LOSS = RowKey("decode_loss", "decode loss", number_format=".2f", lower_is_better=True)
_ROW_KEYS = {
    row_key.key: row_key
    for row_key in (*(key for spec in _REGISTRY for key in spec.row_keys), DECODE_LOSS)
}
_SPEC_BY_ROW_KEY = {row_key.key: spec for spec in _REGISTRY for row_key in spec.row_keys}


def metric_keys() -> tuple[str, ...]:
    """Return the row keys of all metrics in the order of tables, without the decode loss."""
    return tuple(_SPEC_BY_ROW_KEY)


def quality_keys() -> tuple[str, ...]:
    """Return the row keys that can measure quality in order of preference: primary keys, other
    keys, then the decode loss.
    """
    primary = [spec.primary for spec in _REGISTRY]
    return tuple(dict.fromkeys((*primary, *metric_keys(), DECODE_LOSS.key)))


def row_key(key: str) -> RowKey:
    """Return how reports show the number under a row key: title, number format, and whether lower
    values are better.
    """
    return _ROW_KEYS[key]


def metric_of(key: str) -> MetricSpec | None:
    """Return the metric that computes the value of a row key; None for the decode loss and unknown
    keys.
    """
    return _SPEC_BY_ROW_KEY.get(key)


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
        for name in dict.fromkeys(map(str, scoring.metrics))
    ]
    for metric in made:
        metric.check(references)
    return made


def score(scoring: Scoring, answers: Answers) -> Scores:
    """Score answers with all of a task's metrics."""
    return merge(metric.score(answers) for metric in make_metrics(scoring))


def merge(scores: Iterable[Scores]) -> Scores:
    """Merge the scores of several metrics into one."""
    merged = Scores({}, {}, {})
    for part in scores:
        merged.values.update(part.values)
        merged.signatures.update(part.signatures)
        merged.against_full.update(part.against_full)
    return merged
