"""Input and output of metrics, and the interface that every metric implements."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class Answers:
    """Texts to score, aligned by position.

    Attributes:
        hypotheses: the generated texts.
        references: one reference per hypothesis.
        sources: the source texts, for metrics that read them.
        full: the full model's hypotheses for the same sources; None if there are none.
    """

    hypotheses: list[str]
    references: list[str]
    sources: list[str]
    full: list[str] | None = None


@dataclass(frozen=True)
class Scoring:
    """The metrics of a task and their settings.

    Attributes:
        metrics: names in `metrics.METRICS`.
        target_language: language of the answers, which selects sacrebleu's tokenizer; None: sacrebleu's default.
        tokenize: name of a sacrebleu tokenizer, instead of the one for the language.
        stemmer: True if ROUGE stems words.
        comet_model: hub id of a COMET model, or the path of a checkpoint.
        bertscore_model: hub id or folder of a model; None: bert-score's default for the language.
    """

    metrics: tuple[str, ...]
    target_language: str | None = None
    tokenize: str | None = None
    stemmer: bool = True
    comet_model: str = "Unbabel/wmt22-comet-da"
    bertscore_model: str | None = None


@dataclass(frozen=True)
class Scores:
    """Metric values, their signatures, and the paired comparison with the full model.

    Attributes:
        values: value by row key, for example `bleu`.
        signatures: the scorer's settings by row key, which make a value reproducible.
        against_full: `full`, `delta`, its 95% interval `delta_low` and `delta_high`, and `p_value` by row key.
    """

    values: dict[str, float]
    signatures: dict[str, str] = field(default_factory=dict)
    against_full: dict[str, dict[str, Any]] = field(default_factory=dict)


class Metric(Protocol):
    """A scorer with its settings."""

    def check(self, references: Sequence[str] = ()) -> None:
        """Check before generation that the packages are installed and the references can be read.

        Raises:
            UsageError: the message names the package to install or the metric to use instead.
        """

    def score(self, answers: Answers) -> Scores:
        """Score all answers."""


@dataclass(frozen=True)
class RowKey:
    """One number that a metric adds to a row, and how reports show it.

    Attributes:
        key: key in the row.
        title: name of the number in text and plots.
        short_title: column title; empty: same as `title`.
        number_format: format of the number in tables.
        lower_is_better: direction of the number.
    """

    key: str
    title: str
    short_title: str = ""
    number_format: str = ".1f"
    lower_is_better: bool = False

    @property
    def column_title(self) -> str:
        """Title of the number as a table column."""
        return self.short_title or self.title


@dataclass(frozen=True)
class MetricSpec:
    """One entry in the registry of metrics.

    Attributes:
        name: name in `task.metrics`.
        make: makes the metric with a task's settings.
        row_keys: the numbers that the metric adds to a row.
        primary_key: row key that decides in comparisons; empty: the first one.
        is_neural: True if the metric needs a model of its own, which a report does not load.
    """

    name: str
    make: Callable[[Scoring], Metric]
    row_keys: tuple[RowKey, ...]
    primary_key: str = ""
    is_neural: bool = False

    @property
    def primary(self) -> str:
        """Row key that decides in comparisons."""
        return self.primary_key or self.row_keys[0].key
