"""ROUGE, computed by rouge-score and compared with the full model by a paired bootstrap."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ulskip_cli.core.errors import UsageError
from ulskip_cli.tasks.metrics.bootstrap import compare
from ulskip_cli.tasks.metrics.scores import Answers, Scores

KINDS = ("rouge1", "rouge2", "rougeL", "rougeLsum")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z0-9\"'(])")
_ROUGE_CHARACTER = re.compile(r"[a-z0-9]", re.IGNORECASE)  # rouge-score drops all other characters


@dataclass(frozen=True)
class Rouge:
    """ROUGE-1, 2, L and Lsum: mean F-measures in percent, with one reference per hypothesis.

    ROUGE-Lsum needs one sentence per line: hypotheses without line breaks are split into sentences,
    references are not.
    """

    stemmer: bool

    def check(self, references: Sequence[str] = ()) -> None:
        """Raise UsageError if a reference has no Latin letter or digit, because rouge-score drops
        all other characters.
        """
        unreadable = next((text for text in references if not _ROUGE_CHARACTER.search(text)), None)
        if unreadable is not None:
            raise UsageError(
                "metric rouge requires Latin letters or digits, got the reference"
                f" {unreadable[:40]!r}; task.metrics=[chrf] scores any script"
            )

    def score(self, answers: Answers) -> Scores:
        """Compute the mean F-measures and their paired comparison with the full model."""
        self.check(answers.references)
        own = self.f_measures(answers.hypotheses, answers.references)
        values = {kind: float(own[kind].mean()) for kind in KINDS}
        stemmed = "yes" if self.stemmer else "no"
        signature = (
            f"rouge-score F-measure, stemmer={stemmed}, sentences split at line breaks or sentence"
            " ends"
        )
        other = (
            self.f_measures(answers.full, answers.references) if answers.full is not None else {}
        )
        compared = {kind: compare(own[kind], other[kind]) for kind in other}
        return Scores(values, dict.fromkeys(KINDS, signature), compared)

    def f_measures(
        self, hypotheses: list[str], references: list[str]
    ) -> dict[str, NDArray[np.float64]]:
        """Return the F-measures of all summaries in percent by kind of ROUGE, each
        [len(hypotheses)].
        """
        from rouge_score.rouge_scorer import RougeScorer  # slow to import: loads nltk

        scorer = RougeScorer(list(KINDS), use_stemmer=self.stemmer)
        scored = [
            scorer.score(reference, one_sentence_per_line(text))
            for text, reference in zip(hypotheses, references, strict=True)
        ]
        return {
            kind: np.array([100 * scores[kind].fmeasure for scores in scored]) for kind in KINDS
        }


def one_sentence_per_line(text: str) -> str:
    """Split a summary without line breaks into one sentence per line.

    >>> one_sentence_per_line("It rained. Nobody came.").split(chr(10))
    ['It rained.', 'Nobody came.']
    """
    return text if "\n" in text.strip() else _SENTENCE_END.sub("\n", text.strip())
