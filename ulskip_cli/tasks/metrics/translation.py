"""BLEU, chrF and TER, computed by sacrebleu and compared with the full model by sacrebleu's paired bootstrap."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sacrebleu.metrics.base import Metric as SacrebleuMetric
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.metrics.ter import TER
from sacrebleu.significance import PairedTest, Result, _bootstrap_resample

from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.task import Scoring
from ulskip_cli.tasks.metrics.scores import Answers, Scores

NUM_RESAMPLES = 1000
EXTRAS = {"ja": "ja", "ko": "ko"}  # sacrebleu extra that the tokenizer of a target language requires


@dataclass(frozen=True)
class Sacrebleu:
    """A corpus metric of sacrebleu."""

    name: str  # row key
    make: Callable[[], SacrebleuMetric]
    extra: str | None = None  # extra of the package sacrebleu that the tokenizer requires

    def check(self, references: Sequence[str] = ()) -> None:
        """Raise UsageError if the tokenizer of the target language is not installed."""
        logging.getLogger("sacrebleu").setLevel(logging.ERROR)  # hide its advice on detokenized text
        try:
            self.make()
        except (ImportError, RuntimeError) as error:
            install = (
                f'install it with: pip install "sacrebleu[{self.extra}]"' if self.extra else "see sacrebleu's documentation"
            )
            reason = str(error).strip().split("\n")[0]
            raise UsageError(f"metric {self.name}: sacrebleu cannot tokenize this language ({reason}); {install}") from None

    def score(self, answers: Answers) -> Scores:
        """Compute the corpus score with one reference per hypothesis."""
        self.check()
        metric = self.make()
        value = metric.corpus_score(answers.hypotheses, [answers.references]).score
        signatures = {self.name: str(metric.get_signature())}
        compared = {self.name: compare(metric, answers)} if answers.full else {}
        return Scores({self.name: value}, signatures, compared)


def bleu(scoring: Scoring) -> Sacrebleu:
    """Make BLEU with the task's tokenizer or sacrebleu's default for the language; raise UsageError if it is unknown."""
    language = scoring.target_language or ""
    tokenize = scoring.tokenize
    if tokenize is not None and tokenize not in BLEU.TOKENIZERS:
        known = ", ".join(BLEU.TOKENIZERS)
        raise UsageError(f"expected task.tokenize to be one of sacrebleu's tokenizers ({known}), got '{tokenize}'")
    return Sacrebleu("bleu", lambda: BLEU(tokenize=tokenize, trg_lang=language), EXTRAS.get(language))


def chrf(scoring: Scoring) -> Sacrebleu:
    """Make chrF2, which needs no tokenizer."""
    return Sacrebleu("chrf", CHRF)


def ter(scoring: Scoring) -> Sacrebleu:
    """Make TER, which counts characters instead of words for Chinese and Japanese."""
    asian = scoring.target_language in ("zh", "ja")
    return Sacrebleu("ter", lambda: TER(normalized=asian, asian_support=asian))


def compare(metric: SacrebleuMetric, answers: Answers) -> dict[str, Any]:
    """Compare with the full model by the paired bootstrap of Koehn 2004: difference of scores, 95% interval and p-value.

    The p-value comes from sacrebleu. The interval comes from sacrebleu's resampling, whose fixed seed draws the same
    segments for both systems.
    """
    full, hypotheses, references = answers.full, answers.hypotheses, answers.references
    assert full is not None
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
        "p_value": 1.0 if hypotheses == full else system.p_value,  # sacrebleu reports a small p-value for equal systems
    }
