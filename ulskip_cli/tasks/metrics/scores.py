"""What scorers are given and what they return, whatever the task."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class Answers:
    """Texts to judge, one segment a position.

    Attributes:
        hypotheses: what was generated.
        references: one a hypothesis.
        sources: what was asked, for metrics that read it.
        full: the full model's hypotheses for the same segments; None where there are none.
    """

    hypotheses: list[str]
    references: list[str]
    sources: list[str]
    full: list[str] | None = None


@dataclass(frozen=True)
class Scoring:
    """Which metrics a task is judged by, and their settings.

    Attributes:
        metrics: names, see `metrics.METRICS`.
        target_language: decides sacrebleu's tokenizer; None: its default.
        tokenize: a tokenizer of sacrebleu by name, instead.
        stemmer: whether ROUGE stems words.
        comet_model: a COMET model by hub id, or the path of a checkpoint.
        bertscore_model: a model by hub id or folder; None: the package's choice for the language.
    """

    metrics: tuple[str, ...]
    target_language: str | None = None
    tokenize: str | None = None
    stemmer: bool = True
    comet_model: str = "Unbabel/wmt22-comet-da"
    bertscore_model: str | None = None


@dataclass(frozen=True)
class Scores:
    """Metric values by row key, the signatures that make them repeatable, and the paired comparison with full.

    Attributes:
        values: for example `bleu`.
        signatures: the scorer's own, by metric.
        against_full: by metric `delta`, its 95% interval `delta_low` and `delta_high`, and `p_value`.
    """

    values: dict[str, float]
    signatures: dict[str, str] = field(default_factory=dict)
    against_full: dict[str, dict[str, Any]] = field(default_factory=dict)


class Metric(Protocol):
    """A scorer, made with its settings."""

    def ready(self, references: Sequence[str] = ()) -> None:
        """Find out now, and not after an hour of generation, that a package is missing or references cannot be read.

        Raises:
            UsageError: names what to install, or what to use instead.
        """

    def score(self, answers: Answers) -> Scores:
        """Judge all answers."""
