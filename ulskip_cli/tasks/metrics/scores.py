"""Input and output of metrics, the interface that every metric implements, and a base for metrics
that are means over segments.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ulskip_cli.core.task import Scoring as Scoring

if TYPE_CHECKING:
    import numpy as np

NUM_RESAMPLES = 1000
SEED = 12345


@dataclass(frozen=True)
class Answers:
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
    signatures: dict[str, str] = field(default_factory=dict)
    # `full`, `delta`, its 95% interval `delta_low` and `delta_high`, and `p_value`, by row key
    against_full: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Metric(ABC):
    """A scorer, which reads its settings from those of the task."""

    name: str  # in `task.metrics`
    scoring: Scoring

    def check(self, references: Sequence[str] = ()) -> None:  # noqa: B027 - few metrics need it
        """Raise UsageError before generation if a package is missing or a reference cannot be
        read.
        """

    @abstractmethod
    def score(self, answers: Answers) -> Scores:
        """Score all answers."""


class SegmentMetric(Metric):
    """A metric that is the mean of one value for each answer, compared by a paired bootstrap."""

    @abstractmethod
    def signature(self) -> str:
        """Return the settings of the scorer."""

    @abstractmethod
    def segments(self, texts: Sequence[str], answers: Answers) -> "Mapping[str, np.ndarray]":
        """Return one value for each of `texts`, hypotheses of one system, by row key."""

    def score(self, answers: Answers) -> Scores:
        """Compute the means and their comparison with the full model."""
        self.check(answers.references)
        measured = self.segments(answers.hypotheses, answers)
        full = {} if answers.full is None else self.segments(answers.full, answers)
        return Scores(
            {key: float(values.mean()) for key, values in measured.items()},
            dict.fromkeys(measured, self.signature()),
            {key: compare_segments(measured[key], full[key]) for key in full},
        )


def compare_segments(measured: "np.ndarray", full: "np.ndarray") -> dict[str, float]:
    """Compute the difference of two systems' means over segments, with a 95% interval and a
    two-sided p-value, in which the sample itself is one of the resamples.
    """
    import numpy as np

    drawn = np.random.default_rng(SEED).integers(len(measured), size=(NUM_RESAMPLES, len(measured)))
    differences = (measured - full)[drawn].mean(axis=1)
    low, high = np.quantile(differences, [0.025, 0.975])
    beyond = min((differences <= 0).sum(), (differences >= 0).sum())
    return {
        "full": float(full.mean()),
        "delta": float((measured - full).mean()),
        "delta_low": float(low),
        "delta_high": float(high),
        "p_value": min(1.0, 2 * float(beyond + 1) / (NUM_RESAMPLES + 1)),
    }
