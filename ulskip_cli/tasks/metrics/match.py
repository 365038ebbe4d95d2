"""Exact match, for answers that are right or wrong."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ulskip_cli.tasks.metrics.bootstrap import compare
from ulskip_cli.tasks.metrics.scores import Answers, Scores, Scoring


@dataclass(frozen=True)
class ExactMatch:
    """Share of hypotheses, in percent, that equal the reference but for case and white space."""

    def ready(self, references: Sequence[str] = ()) -> None:
        """It needs nothing."""

    def score(self, answers: Answers) -> Scores:
        """The share, and with the full model's answers a paired comparison."""
        own = matches(answers.hypotheses, answers.references)
        compared = {}
        if answers.full is not None:
            compared = {"exact_match": compare(own, matches(answers.full, answers.references))}
        return Scores({"exact_match": float(own.mean())}, {"exact_match": "case and white space folded"}, compared)


def exact_match(scoring: Scoring) -> ExactMatch:
    """It has no settings."""
    return ExactMatch()


def matches(hypotheses: list[str], references: list[str]) -> NDArray[np.float64]:
    """100 where they match, else 0, [len(hypotheses)]."""
    pairs = zip(hypotheses, references, strict=True)
    return np.array([100.0 * (folded(text) == folded(reference)) for text, reference in pairs])


def folded(text: str) -> str:
    """A text without differences of case and white space.

    >>> folded("  New   York")
    'new york'
    """
    return " ".join(text.split()).casefold()
