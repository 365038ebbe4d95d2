"""Metrics of each answer that compare it with the reference: ROUGE, and equal texts."""

import re
from collections.abc import Mapping, Sequence

import numpy as np

from ulskip_cli.core.errors import UsageError
from ulskip_cli.tasks.metrics import ScoredTexts, SegmentMetric

ROUGE_KINDS = ("rouge1", "rouge2", "rougeL", "rougeLsum")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z0-9\"'(])")
_ROUGE_CHARACTER = re.compile(r"[a-z0-9]", re.IGNORECASE)  # rouge-score drops all other characters


class ExactMatch(SegmentMetric):
    """Percentage of hypotheses that equal the reference but for case and white space."""

    signature = "case and white space folded"

    def segments(self, texts: Sequence[str], answers: ScoredTexts) -> Mapping[str, np.ndarray]:
        """Return 100 for each answer that matches its reference, otherwise 0."""
        pairs = zip(map(_folded, texts), map(_folded, answers.references), strict=True)
        return {self.name: 100.0 * np.array([text == reference for text, reference in pairs])}


def _folded(text: str) -> str:
    return " ".join(text.split()).casefold()


class Rouge(SegmentMetric):
    """ROUGE-1, 2, L and Lsum: mean F-measures in percent. ROUGE-Lsum needs one sentence per line:
    hypotheses without line breaks are split into sentences, references are not.
    """

    signature = (
        "rouge-score F-measure, stemmer=yes, sentences split at line breaks or sentence ends"
    )

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

    def segments(self, texts: Sequence[str], answers: ScoredTexts) -> Mapping[str, np.ndarray]:
        """Return the F-measure of each answer in percent by kind of ROUGE, the row key."""
        from rouge_score.rouge_scorer import RougeScorer  # slow to import: loads nltk

        scorer = RougeScorer(list(ROUGE_KINDS), use_stemmer=True)
        scored = [
            scorer.score(reference, one_sentence_per_line(text))
            for text, reference in zip(texts, answers.references, strict=True)
        ]
        return {
            kind: np.array([100 * scores[kind].fmeasure for scores in scored])
            for kind in ROUGE_KINDS
        }


def one_sentence_per_line(text: str) -> str:
    """Split a summary without line breaks into one sentence per line.

    >>> one_sentence_per_line("It rained. Nobody came.").split(chr(10))
    ['It rained.', 'Nobody came.']
    """
    return text if "\n" in text.strip() else _SENTENCE_END.sub("\n", text.strip())
