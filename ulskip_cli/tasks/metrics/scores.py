"""Input and output of metrics, and the interface that every metric implements."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ulskip_cli.core.task import Scoring


@dataclass(frozen=True)
class Answers:
    """Texts to score, aligned by position."""

    hypotheses: list[str]
    references: list[str]
    sources: list[str]
    full: list[str] | None = None  # the full model's hypotheses for the same sources


@dataclass(frozen=True)
class Scores:
    """Metric values, their signatures, and the paired comparison with the full model."""

    values: dict[str, float]  # by row key, for example `bleu`
    signatures: dict[str, str] = field(
        default_factory=dict
    )  # settings of the scorer, which make a value reproducible
    # `full`, `delta`, its 95% interval `delta_low` and `delta_high`, and `p_value`, by row key
    against_full: dict[str, dict[str, Any]] = field(default_factory=dict)


class Metric(Protocol):
    """A scorer with its settings."""

    def check(self, references: Sequence[str] = ()) -> None:
        """Raise UsageError before generation if a package is missing or a reference cannot be
        read.
        """

    def score(self, answers: Answers) -> Scores:
        """Score all answers."""


@dataclass(frozen=True)
class RowKey:
    """One number that a metric adds to a row, and how reports show it."""

    key: str
    title: str  # in text and plots
    short_title: str = ""  # of a table column; empty: `title`
    number_format: str = ".1f"
    lower_is_better: bool = False
    leaves: int = 0  # order of removal of its column on a narrow terminal; 0: never

    @property
    def column_title(self) -> str:
        """Title of the table column that shows the number."""
        return self.short_title or self.title


@dataclass(frozen=True)
class MetricSpec:
    """One entry in the registry of metrics."""

    name: str  # in `task.metrics`
    make: Callable[[Scoring], Metric]
    row_keys: tuple[RowKey, ...]
    primary_key: str = ""  # decides in comparisons; empty: the first row key
    is_neural: bool = False  # needs a separate model, which a report does not load

    @property
    def primary(self) -> str:
        """Row key of the number by which reports compare points."""
        return self.primary_key or self.row_keys[0].key
