"""COMET and BERTScore: metrics that are models, installed apart."""

import importlib.util
import json
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ulskip_cli.core import hub
from ulskip_cli.core.errors import RunError, UsageError
from ulskip_cli.tasks.metrics.bootstrap import compare
from ulskip_cli.tasks.metrics.scores import Answers, Scores, Scoring

BATCH_SIZE = 16
UNLIMITED = 100_000  # tokens; some tokenizers name a number that no C integer holds
COMET_COMMAND = "comet-score"


@dataclass(frozen=True)
class Comet:
    """COMET (Rei et al. 2022): source, hypothesis and reference read by a trained model; mean over segments, times 100.

    Run through its own command: the package needs an older transformers, and so an environment of its own.

    Attributes:
        model: hub id, or the path of a checkpoint.
    """

    model: str

    def ready(self, references: Sequence[str] = ()) -> None:
        """Its command is on the path."""
        if shutil.which(COMET_COMMAND) is None:
            raise UsageError(
                f"metric comet needs the command {COMET_COMMAND}, in an environment of its own since it wants an older "
                "transformers; get it with: pipx install unbabel-comet && pipx inject unbabel-comet 'setuptools<81'"
            )

    def score(self, answers: Answers) -> Scores:
        """The mean, and with the full model's answers a paired comparison."""
        self.ready()
        systems = [answers.hypotheses, *([answers.full] if answers.full is not None else [])]
        own, *full = self._segments(answers, systems)
        return _scores("comet", own, full[0] if full else None, f"COMET {self.model}")

    def _segments(self, answers: Answers, systems: list[list[str]]) -> list[NDArray[np.float64]]:
        """Scores of every segment, times 100, by system."""
        with tempfile.TemporaryDirectory() as folder:

            def written(name: str, texts: list[str]) -> str:
                (Path(folder) / name).write_text("".join(f"{' '.join(text.split())}\n" for text in texts), "utf-8")
                return name

            files = [written(f"system{i}", texts) for i, texts in enumerate(systems)]
            sources, references = written("source", answers.sources), written("reference", answers.references)
            local = Path(self.model).expanduser()
            options = {
                "--model": str(local.resolve()) if local.is_file() else self.model,
                "--batch_size": str(BATCH_SIZE),
                "--gpus": str(_gpus()),
                "--to_json": "scores.json",
            }
            command = [COMET_COMMAND, "-s", sources, "-r", references, "-t", *files, "--quiet", "--only_system"]
            command += [word for option in options.items() for word in option]
            told = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
            file = Path(folder) / "scores.json"
            if told.returncode or not file.is_file():
                raise _no_model("comet", self.model, (told.stderr.strip() or told.stdout.strip()).split("\n")[-1])
            scored = json.loads(file.read_text("utf-8"))
        return [100 * np.array([one["COMET"] for one in scored[name]], dtype=np.float64) for name in files]


@dataclass(frozen=True)
class BertScore:
    """BERTScore (Zhang et al. 2020): F1 of hypothesis and reference in a model's hidden states; mean, times 100.

    Attributes:
        model: hub id or folder; None: the package's choice for the language.
        language: of the references.
    """

    model: str | None
    language: str

    def ready(self, references: Sequence[str] = ()) -> None:
        """The package is there."""
        if importlib.util.find_spec("bert_score") is None:
            raise UsageError(
                "metric bertscore needs bert-score; get it with: pip install 'ulskip[bertscore]' or pip install bert-score"
            )

    def score(self, answers: Answers) -> Scores:
        """The mean, and with the full model's answers a paired comparison."""
        self.ready()
        from bert_score import BERTScorer
        from transformers import AutoConfig
        from transformers.utils import logging

        logging.disable_progress_bar()
        if self.model and self.model.startswith((".", "/", "~")) and not Path(self.model).expanduser().exists():
            raise UsageError(f"metric bertscore: no model folder at {self.model}")

        def segments(hypotheses: list[str]) -> NDArray[np.float64]:
            _, _, f1 = scorer.score(hypotheses, answers.references, batch_size=BATCH_SIZE)
            return 100 * np.asarray(f1, dtype=np.float64)

        try:
            depth = None  # the package knows the best layer of the models that it knows
            if self.model and Path(self.model).exists():
                depth = AutoConfig.from_pretrained(self.model).num_hidden_layers
            with hub.offline_if_unreachable():
                scorer = BERTScorer(model_type=self.model, lang=self.language, num_layers=depth)
            length = getattr(scorer._model.config, "max_position_embeddings", None) or UNLIMITED
            scorer._tokenizer.model_max_length = min(scorer._tokenizer.model_max_length, length)
            own, full = segments(answers.hypotheses), answers.full and segments(answers.full)
        except Exception as error:
            reason = str(error).strip() or type(error).__name__
            raise _no_model("bertscore", self.model or f"the one for '{self.language}'", reason) from None
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


def _no_model(metric: str, model: str, reason: str) -> RunError:
    first = reason.split("\n")[0][:160]
    return RunError(f"metric {metric}: cannot score with {model} ({first}); give a local one as task.{metric}_model")


def _gpus() -> int:
    import torch

    return int(torch.cuda.is_available())
