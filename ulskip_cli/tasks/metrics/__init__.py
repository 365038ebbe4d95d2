"""Metrics that score a model's answers, and their registry, `METRICS`. Start here, then read
`overlap.py`; a new metric needs a subclass of `Metric`, its test and an entry here.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from ulskip_cli.core.errors import UsageError, require_choice
from ulskip_cli.core.options import option
from ulskip_cli.core.task import Scoring

if TYPE_CHECKING:
    import numpy as np

NUM_RESAMPLES = 1000  # like the seed, that of sacrebleu
SEED = 12345


@dataclass(frozen=True)
class ScoredTexts:
    """Texts to score, aligned by position."""

    hypotheses: list[str]
    references: list[str]
    sources: list[str]
    full: list[str] | None = None  # the full model's hypotheses for the same sources
    tests: list[str] = field(default_factory=list)  # programs that check the code of answers


@dataclass(frozen=True)
class Scores:
    """Metric values, their signatures, and the paired comparison with the full model."""

    values: dict[str, float]  # by row key, for example `bleu`
    # settings of the scorer, which make a value reproducible
    signatures: dict[str, str]
    # `full`, `delta`, and its 95% interval `delta_low` and `delta_high`, by row key
    against_full: dict[str, dict[str, float]]


@dataclass(frozen=True)
class Metric(ABC):
    """A scorer, with the settings of the task."""

    name: str  # in `task.metrics`
    scoring: Scoring

    def check(self, references: Sequence[str] = ()) -> None:  # noqa: B027 - few metrics need it
        """Raise UsageError before generation if a package is missing or a reference cannot be
        read.
        """

    @abstractmethod
    def score(self, answers: ScoredTexts) -> Scores:
        """Score all answers."""


class SegmentMetric(Metric):
    """A metric that is the mean of a value for each answer, compared by a paired bootstrap."""

    signature: ClassVar[str]  # the settings of the scorer

    @abstractmethod
    def segments(self, texts: Sequence[str], answers: ScoredTexts) -> "Mapping[str, np.ndarray]":
        """Return by row key one value for each of `texts`, hypotheses of one system."""

    def score(self, answers: ScoredTexts) -> Scores:
        """Compute the means, and compare with the full model's answers if they are given."""
        self.check(answers.references)
        measured = self.segments(answers.hypotheses, answers)
        full = {} if answers.full is None else self.segments(answers.full, answers)
        return Scores(
            {key: float(values.mean()) for key, values in measured.items()},
            dict.fromkeys(measured, self.signature),
            {key: compare_segments(measured[key], full[key]) for key in full},
        )


def resamples(count: int) -> "np.ndarray":
    """Draw the indices of the bootstrap samples of `count` examples, [samples, count]."""
    import numpy as np

    return np.random.default_rng(SEED).integers(count, size=(NUM_RESAMPLES, count))


def comparison(full: float, delta: float, differences: "np.ndarray") -> dict[str, float]:
    """Return the full model's score, and the difference `delta` with its 95% interval, from
    `differences`, that in each bootstrap sample.
    """
    import numpy as np

    low, high = np.quantile(differences, [0.025, 0.975])
    return {"full": full, "delta": delta, "delta_low": float(low), "delta_high": float(high)}


def compare_segments(measured: "np.ndarray", full: "np.ndarray") -> dict[str, float]:
    """Compare the values [segments] of two systems: return `full`, `delta` and its 95% interval by
    a paired bootstrap.
    """
    differences = measured - full
    sampled = differences[resamples(len(differences))].mean(axis=1)
    return comparison(float(full.mean()), float(differences.mean()), sampled)


@dataclass(frozen=True)
class RowKey:
    """One number that a metric adds to a row, and how reports show it."""

    key: str
    title: str  # in text and plots
    short_title: str = ""  # of a table column; empty: `title`
    number_format: str = ".1f"
    optional: bool = False  # its column may be left out on a narrow terminal


@dataclass(frozen=True)
class MetricSpec:
    """One entry in the registry of metrics."""

    name: str  # in `task.metrics`
    metric_class: Callable[[], type[Metric]]  # imports it, because its packages are slow to import
    row_keys: tuple[RowKey, ...]
    primary_key: str = ""  # decides in comparisons; empty: the first row key
    in_reports: bool = True  # False: runs code, which a report does not
    is_binary: bool = False  # each answer is right or wrong

    @property
    def primary(self) -> str:
        """Row key of the number by which reports compare points."""
        return self.primary_key or self.row_keys[0].key

    def make(self, scoring: Scoring) -> Metric:
        """Make the metric with the settings of a task."""
        return self.metric_class()(self.name, scoring)


def _sacrebleu() -> type[Metric]:
    from ulskip_cli.tasks.metrics.translation import Sacrebleu

    return Sacrebleu


def _rouge() -> type[Metric]:
    from ulskip_cli.tasks.metrics.overlap import Rouge

    return Rouge


def _exact_match() -> type[Metric]:
    from ulskip_cli.tasks.metrics.overlap import ExactMatch

    return ExactMatch


def _pass_at_1() -> type[Metric]:
    from ulskip_cli.tasks.metrics.code import PassAt1

    return PassAt1


ROUGE_KEYS = (
    RowKey("rouge1", "ROUGE-1", "R-1"),
    RowKey("rouge2", "ROUGE-2", "R-2", optional=True),
    RowKey("rougeL", "ROUGE-L", "R-L"),
    RowKey("rougeLsum", "ROUGE-Lsum", "R-Lsum", optional=True),
)
_REGISTRY = (
    MetricSpec("bleu", _sacrebleu, (RowKey("bleu", "BLEU"),)),
    MetricSpec("chrf", _sacrebleu, (RowKey("chrf", "chrF", optional=True),)),
    MetricSpec("rouge", _rouge, ROUGE_KEYS, primary_key="rougeL"),
    MetricSpec(
        "exact_match",
        _exact_match,
        (RowKey("exact_match", "exact match", "exact"),),
        is_binary=True,
    ),
    MetricSpec(
        "pass_at_1",
        _pass_at_1,
        (RowKey("pass_at_1", "pass@1"),),
        in_reports=False,
        is_binary=True,
    ),
)
METRICS = {spec.name: spec for spec in _REGISTRY}
# The evaluation measures the decode loss with the model itself, so that it has a row key but no
# metric.
DECODE_LOSS = RowKey("decode_loss", "decode loss", number_format=".2f")
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
    """Make the metrics of a task; raise UsageError if one cannot score the references."""
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


def compute_scores(scoring: Scoring, answers: ScoredTexts) -> Scores:
    """Score answers with all of a task's metrics."""
    merged = Scores({}, {}, {})
    for metric in make_metrics(scoring):
        part = metric.score(answers)
        merged.values.update(part.values)
        merged.signatures.update(part.signatures)
        merged.against_full.update(part.against_full)
    return merged
