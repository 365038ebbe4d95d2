"""ROUGE by rouge-score, with a paired bootstrap against the full model."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ulskip_cli.core.errors import UsageError
from ulskip_cli.tasks.metrics.bootstrap import compare
from ulskip_cli.tasks.metrics.scores import Answers, Scores, Scoring

KINDS = ("rouge1", "rouge2", "rougeL", "rougeLsum")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z0-9\"'(])")
_READ_BY_ROUGE = re.compile(r"[a-z0-9]", re.IGNORECASE)  # the scorer drops every other character


@dataclass(frozen=True)
class Rouge:
    """ROUGE-1, 2, L and Lsum: mean F-measures in percent, one reference each.

    For Lsum, hypotheses are split into sentences where they hold no line breaks; references have one sentence a line.

    Attributes:
        stemmer: whether words are stemmed before they are compared.
    """

    stemmer: bool

    def ready(self, references: Sequence[str] = ()) -> None:
        """Every reference holds something that rouge-score reads."""
        unread = next((text for text in references if not _READ_BY_ROUGE.search(text)), None)
        if unread is not None:
            raise UsageError(
                f"metric rouge reads latin letters and digits only, and a reference has none: {unread[:40]!r}; use chrf"
            )

    def score(self, answers: Answers) -> Scores:
        """Mean F-measures and their signature.

        Raises:
            UsageError: a reference holds nothing that rouge-score reads.
        """
        self.ready(answers.references)
        own = self.f_measures(answers.hypotheses, answers.references)
        values = {kind: float(own[kind].mean()) for kind in KINDS}
        stemmed = "yes" if self.stemmer else "no"
        signature = f"rouge-score F-measure, stemmer={stemmed}, sentences split at line breaks or sentence ends"
        compared = {}
        if answers.full is not None:
            other = self.f_measures(answers.full, answers.references)
            compared = {kind: compare(own[kind], other[kind]) for kind in KINDS}
        return Scores(values, dict.fromkeys(KINDS, signature), compared)

    def f_measures(self, hypotheses: list[str], references: list[str]) -> dict[str, NDArray[np.float64]]:
        """F-measure in percent of every summary, by kind of ROUGE, each [len(hypotheses)]."""
        from rouge_score.rouge_scorer import RougeScorer  # and with it all of nltk

        scorer = RougeScorer(list(KINDS), use_stemmer=self.stemmer)
        scored = [scorer.score(reference, one_a_line(text)) for text, reference in zip(hypotheses, references, strict=True)]
        return {kind: np.array([100 * each[kind].fmeasure for each in scored]) for kind in KINDS}


def rouge(scoring: Scoring) -> Rouge:
    """ROUGE with the task's stemmer setting."""
    return Rouge(scoring.stemmer)


def one_a_line(text: str) -> str:
    """A summary with one sentence a line.

    >>> one_a_line("It rained. Nobody came.").split(chr(10))
    ['It rained.', 'Nobody came.']
    """
    return text if "\n" in text.strip() else _SENTENCE_END.sub("\n", text.strip())
