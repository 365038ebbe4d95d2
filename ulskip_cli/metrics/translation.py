"""BLEU and chrF by sacrebleu, with its paired bootstrap against the full model."""

import logging
from typing import Any

import numpy as np
from sacrebleu.metrics.base import Metric
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.significance import PairedTest, Result, _bootstrap_resample

from ulskip_cli.metrics.scores import Scores

NUM_RESAMPLES = 1000


def score(hypotheses: list[str], references: list[str], full: list[str] | None, target_language: str) -> Scores:
    """Corpus scores of hypotheses, one reference each.

    Args:
        hypotheses: plain text, one segment each.
        references: as many.
        full: the full model's hypotheses for the same segments; None where there are none.
        target_language: decides sacrebleu's tokenizer.
    """
    logging.getLogger("sacrebleu").setLevel(logging.ERROR)  # its advice on detokenizing is not for users of ulskip
    metrics: dict[str, Metric] = {"bleu": BLEU(trg_lang=target_language), "chrf": CHRF()}
    values = {name: metric.corpus_score(hypotheses, [references]).score for name, metric in metrics.items()}
    signatures = {name: str(metric.get_signature()) for name, metric in metrics.items()}
    compared = {name: compare(metric, hypotheses, full, references) for name, metric in metrics.items()} if full else {}
    return Scores(values, signatures, compared)


def compare(metric: Metric, hypotheses: list[str], full: list[str], references: list[str]) -> dict[str, Any]:
    """The paired bootstrap of Koehn 2004 over segments: the difference to full and its 95% interval.

    The p-value is sacrebleu's own; the interval comes from its resampling, which with its fixed seed draws the
    same segments for both systems.
    """
    test = PairedTest(
        [("full", full), ("strategy", hypotheses)], {"m": metric}, [references], test_type="bs", n_samples=NUM_RESAMPLES
    )
    _, results = test()
    (name,) = [key for key in results if key != "System"]
    baseline, system = results[name]
    assert isinstance(baseline, Result) and isinstance(system, Result)
    draws = []
    for texts in (hypotheses, full):
        stats = metric._extract_corpus_statistics(texts, [references])
        draws.append(np.array([s.score for s in _bootstrap_resample(stats, metric, NUM_RESAMPLES)[1]]))
    low, high = np.quantile(draws[0] - draws[1], [0.025, 0.975])
    return {
        "full": baseline.score,
        "delta": system.score - baseline.score,
        "delta_low": float(low),
        "delta_high": float(high),
        "p_value": 1.0 if hypotheses == full else system.p_value,  # sacrebleu's count calls equal systems different
    }
