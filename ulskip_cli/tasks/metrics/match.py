"""Exact match, for answers that are either right or wrong."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ulskip_cli.tasks.metrics.bootstrap import compare
from ulskip_cli.tasks.metrics.scores import Answers, Scores


@dataclass(frozen=True)
class ExactMatch:
    """Percentage of hypotheses that equal the reference, ignoring case and differences in white
    space.
    """

    def check(self, references: Sequence[str] = ()) -> None:
        """Accept any references; the metric needs no package."""

    def score(self, answers: Answers) -> Scores:
        """Compute the percentage and its paired comparison with the full model."""
        own = matches(answers.hypotheses, answers.references)
        compared = {}
        if answers.full is not None:
            compared = {"exact_match": compare(own, matches(answers.full, answers.references))}
        return Scores(
            {"exact_match": float(own.mean())},
            {"exact_match": "case and white space folded"},
            compared,
        )


def matches(hypotheses: list[str], references: list[str]) -> NDArray[np.float64]:
    """Return 100 for every match and 0 for every other pair, [len(hypotheses)]."""
    pairs = zip(hypotheses, references, strict=True)
    return np.array([100.0 * (fold(text) == fold(reference)) for text, reference in pairs])


def fold(text: str) -> str:
    """Normalize case and white space.

    >>> fold("  New   York")
    'new york'
    """
    return " ".join(text.split()).casefold()
