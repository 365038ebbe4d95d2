"""ROUGE by rouge-score, with a paired bootstrap against the full model."""

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rouge_score.rouge_scorer import RougeScorer

from ulskip_cli.metrics.scores import Scores

KINDS = ("rouge1", "rouge2", "rougeL", "rougeLsum")
NUM_RESAMPLES = 1000
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z0-9\"'(])")


def score(hypotheses: list[str], references: list[str], full: list[str] | None = None, stemmer: bool = True) -> Scores:
    """Mean F-measures in percent, one reference each.

    Args:
        hypotheses: summaries; for ROUGE-Lsum they are split into sentences where they hold no line breaks.
        references: as many, one sentence a line.
        full: the full model's summaries of the same texts; None where there are none.
        stemmer: whether words are stemmed before they are compared.
    """
    own = f_measures(hypotheses, references, stemmer)
    values = {kind: float(own[kind].mean()) for kind in KINDS}
    signature = f"rouge-score F-measure, stemmer={'yes' if stemmer else 'no'}, sentences split at line breaks or sentence ends"
    compared = {}
    if full is not None:
        other = f_measures(full, references, stemmer)
        compared = {kind: compare(own[kind], other[kind]) for kind in KINDS}
    return Scores(values, dict.fromkeys(KINDS, signature), compared)


def f_measures(hypotheses: list[str], references: list[str], stemmer: bool) -> dict[str, NDArray[np.float64]]:
    """F-measure in percent of every summary, by kind of ROUGE, each [len(hypotheses)]."""
    scorer = RougeScorer(list(KINDS), use_stemmer=stemmer)
    scored = [scorer.score(reference, one_a_line(text)) for text, reference in zip(hypotheses, references, strict=True)]
    return {kind: np.array([100 * each[kind].fmeasure for each in scored]) for kind in KINDS}


def compare(own: NDArray[np.float64], full: NDArray[np.float64]) -> dict[str, Any]:
    """The paired bootstrap over texts: the difference of means, its 95% interval and two-sided p-value."""
    drawn = np.random.default_rng(12345).integers(len(own), size=(NUM_RESAMPLES, len(own)))
    differences = (own - full)[drawn].mean(axis=1)
    low, high = np.quantile(differences, [0.025, 0.975])
    beyond = min((differences <= 0).mean(), (differences >= 0).mean())
    return {
        "full": float(full.mean()),
        "delta": float((own - full).mean()),
        "delta_low": float(low),
        "delta_high": float(high),
        "p_value": min(1.0, 2 * float(beyond)),
    }


def one_a_line(text: str) -> str:
    """A summary with one sentence a line.

    >>> one_a_line("It rained. Nobody came.").split(chr(10))
    ['It rained.', 'Nobody came.']
    """
    return text if "\n" in text.strip() else _SENTENCE_END.sub("\n", text.strip())
