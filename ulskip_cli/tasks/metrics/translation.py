"""BLEU and chrF, computed by sacrebleu and compared by a paired bootstrap."""

import logging
from collections.abc import Sequence

import numpy as np
from sacrebleu.metrics.base import Metric as SacrebleuMetric
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from ulskip_cli.core.errors import UsageError, reason
from ulskip_cli.tasks.metrics import Metric, ScoredTexts, Scores, comparison, resamples


class Sacrebleu(Metric):
    """A corpus metric of sacrebleu: BLEU or chrF2."""

    def make(self) -> SacrebleuMetric:
        """Make BLEU with the tokenizer for the language, or chrF2, which needs none."""
        language = self.scoring.target_language or ""
        return BLEU(trg_lang=language) if self.name == "bleu" else CHRF()

    def check(self, references: Sequence[str] = ()) -> None:
        """Raise UsageError if the tokenizer of the target language is not installed."""
        # hide its advice on detokenized text
        logging.getLogger("sacrebleu").setLevel(logging.ERROR)
        try:
            self.make()
        except (ImportError, RuntimeError) as error:
            raise UsageError(
                f"metric {self.name}: sacrebleu cannot tokenize this language ({reason(error)});"
                " for Japanese and Korean, run: pip install 'ulskip[asian]'"
            ) from None

    def score(self, answers: ScoredTexts) -> Scores:
        """Compute the corpus score with one reference per hypothesis."""
        self.check()
        metric = self.make()
        value = metric.corpus_score(answers.hypotheses, [answers.references]).score
        signatures = {self.name: str(metric.get_signature())}
        compared = {self.name: compare_systems(metric, answers)} if answers.full else {}
        return Scores({self.name: value}, signatures, compared)


def compare_systems(metric: SacrebleuMetric, answers: ScoredTexts) -> dict[str, float]:
    """Compare with the full model by the paired bootstrap of Koehn 2004. Seed and draws are those
    of sacrebleu's `PairedTest`, which does not return the interval of the difference.
    """
    assert answers.full is not None
    drawn = resamples(len(answers.references))

    def scored(texts: Sequence[str]) -> tuple[float, np.ndarray]:
        """Return the score of a system, and those [samples] in the bootstrap samples."""
        # counts of each segment, e.g. of its n-grams: [segments, counts]
        segments = np.array(metric._extract_corpus_statistics(texts, [answers.references]))
        score: float = metric._compute_score_from_stats(segments.sum(0)).score
        segments = segments.astype("float32")  # as sacrebleu does
        samples = (segments[indices].sum(0) for indices in drawn)
        scores = [metric._compute_score_from_stats(sample).score for sample in samples]
        return score, np.array(scores)

    full, full_in_samples = scored(answers.full)
    score, score_in_samples = scored(answers.hypotheses)
    return comparison(full, score - full, score_in_samples - full_in_samples)
