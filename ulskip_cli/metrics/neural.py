"""COMET and BERTScore: metrics that are models, each in an extra of its own."""

import importlib.util
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ulskip_cli.errors import RunError, UsageError
from ulskip_cli.metrics.bootstrap import compare
from ulskip_cli.metrics.scores import Answers, Scores, Scoring

BATCH_SIZE = 16


@dataclass(frozen=True)
class Comet:
    """COMET (Rei et al. 2022): source, hypothesis and reference read by a trained model; mean over segments, times 100.

    Attributes:
        model: hub id, or the path of a checkpoint.
    """

    model: str

    def ready(self) -> None:
        """The package is there."""
        _installed("comet", "unbabel-comet", "comet")

    def score(self, answers: Answers) -> Scores:
        """The mean, and with the full model's answers a paired comparison."""
        self.ready()
        from comet import download_model, load_from_checkpoint

        try:
            path = self.model if Path(self.model).is_file() else download_model(self.model)
            scorer = load_from_checkpoint(path)
        except Exception as error:
            raise _no_model("comet", self.model, error) from None

        def segments(hypotheses: list[str]) -> NDArray[np.float64]:
            texts = zip(answers.sources, hypotheses, answers.references, strict=True)
            data = [{"src": source, "mt": text, "ref": reference} for source, text, reference in texts]
            predicted: Any = scorer.predict(data, batch_size=BATCH_SIZE, gpus=_gpus(), progress_bar=False)
            return 100 * np.asarray(predicted.scores, dtype=np.float64)

        return _scores("comet", segments(answers.hypotheses), answers.full and segments(answers.full), f"COMET {self.model}")


@dataclass(frozen=True)
class BertScore:
    """BERTScore (Zhang et al. 2020): F1 of hypothesis and reference in a model's hidden states; mean, times 100.

    Attributes:
        model: hub id or folder; None: the package's choice for the language.
        language: of the references.
    """

    model: str | None
    language: str

    def ready(self) -> None:
        """The package is there."""
        _installed("bert_score", "bert-score", "bertscore")

    def score(self, answers: Answers) -> Scores:
        """The mean, and with the full model's answers a paired comparison."""
        self.ready()
        from bert_score import BERTScorer
        from transformers import AutoConfig

        try:
            depth = None  # the package knows the best layer of the models that it knows
            if self.model and Path(self.model).exists():
                depth = AutoConfig.from_pretrained(self.model).num_hidden_layers
            scorer = BERTScorer(model_type=self.model, lang=self.language, num_layers=depth)
        except Exception as error:
            raise _no_model("bertscore", self.model or f"the one for '{self.language}'", error) from None

        def segments(hypotheses: list[str]) -> NDArray[np.float64]:
            _, _, f1 = scorer.score(hypotheses, answers.references, batch_size=BATCH_SIZE)
            return 100 * np.asarray(f1, dtype=np.float64)

        own, full = segments(answers.hypotheses), answers.full and segments(answers.full)
        return _scores("bertscore", own, full, f"BERTScore F1 {scorer.hash}")


def comet(scoring: Scoring) -> Comet:
    """COMET with the task's model."""
    return Comet(scoring.comet_model)


def bertscore(scoring: Scoring) -> BertScore:
    """BERTScore for the target language; English where a task names none."""
    return BertScore(scoring.bertscore_model, scoring.target_language or "en")


def _scores(name: str, own: NDArray[np.float64], full: Any, signature: str) -> Scores:
    compared = {} if full is None else {name: compare(own, full)}
    return Scores({name: float(own.mean())}, {name: signature}, compared)


def _installed(module: str, package: str, extra: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise UsageError(f"metric {extra} needs {package}; get it with: pip install 'ulskip[{extra}]' or pip install {package}")
    logging.getLogger("transformers").setLevel(logging.ERROR)


def _no_model(metric: str, model: str, error: Exception) -> RunError:
    reason = str(error).strip().split("\n")[0][:160] or type(error).__name__
    return RunError(f"metric {metric}: cannot load its model {model} ({reason}); give a local one as task.{metric}_model")


def _gpus() -> int:
    import torch

    return int(torch.cuda.is_available())
