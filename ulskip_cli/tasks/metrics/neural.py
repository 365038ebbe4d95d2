"""COMET and BERTScore, which score with a neural model and are installed separately."""

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

from ulskip_cli.core import environment
from ulskip_cli.core.errors import RunError, UsageError
from ulskip_cli.core.files import user_path
from ulskip_cli.core.task import Scoring
from ulskip_cli.tasks.metrics.bootstrap import compare
from ulskip_cli.tasks.metrics.scores import Answers, Scores

BATCH_SIZE = 16
UNLIMITED = 100_000  # tokens; some tokenizers have a maximum length that overflows a C integer
COMET_COMMAND = "comet-score"


@dataclass(frozen=True)
class Comet:
    """COMET (Rei et al. 2022), mean over segments times 100; it runs as a command, because it needs
    an older transformers.
    """

    model: str  # hub id or path of a checkpoint

    def check(self, references: Sequence[str] = ()) -> None:
        """Raise UsageError if the command is not on the PATH."""
        if shutil.which(COMET_COMMAND) is None:
            raise UsageError(
                f"metric comet requires the command {COMET_COMMAND} in a separate environment with"
                " an older transformers; install it with: pipx install unbabel-comet && pipx"
                " inject unbabel-comet 'setuptools<81'"
            )

    def score(self, answers: Answers) -> Scores:
        """Compute the mean and its paired comparison with the full model."""
        self.check()
        systems = [answers.hypotheses, *([answers.full] if answers.full is not None else [])]
        own, *full = self._segments(answers, systems)
        return _scores("comet", own, full[0] if full else None, f"COMET {self.model}")

    def _segments(self, answers: Answers, systems: list[list[str]]) -> list[NDArray[np.float64]]:
        import torch

        with tempfile.TemporaryDirectory() as folder:

            def write(name: str, texts: list[str]) -> str:
                (Path(folder) / name).write_text(
                    "".join(f"{' '.join(text.split())}\n" for text in texts), "utf-8"
                )
                return name

            files = [write(f"system{i}", texts) for i, texts in enumerate(systems)]
            sources, references = (
                write("source", answers.sources),
                write("reference", answers.references),
            )
            local = user_path(self.model, "a metric's model")
            options = {
                "--model": str(local.resolve()) if local.is_file() else self.model,
                "--batch_size": str(BATCH_SIZE),
                "--gpus": str(int(torch.cuda.is_available())),
                "--to_json": "scores.json",
            }
            command = [
                COMET_COMMAND,
                "-s",
                sources,
                "-r",
                references,
                "-t",
                *files,
                "--quiet",
                "--only_system",
            ]
            command += [argument for option in options.items() for argument in option]
            process = subprocess.run(
                command, cwd=folder, capture_output=True, text=True, check=False
            )
            output = Path(folder) / "scores.json"
            if process.returncode or not output.is_file():
                raise _scoring_error(
                    "comet",
                    self.model,
                    (process.stderr.strip() or process.stdout.strip()).split("\n")[-1],
                )
            scored = json.loads(output.read_text("utf-8"))
        return [
            100 * np.array([segment["COMET"] for segment in scored[name]], dtype=np.float64)
            for name in files
        ]


@dataclass(frozen=True)
class BertScore:
    """BERTScore (Zhang et al. 2020): F1 over the hidden states of hypothesis and reference; mean
    over segments, times 100.
    """

    model: str | None  # hub id or folder; None: bert-score's default for the language
    language: str

    def check(self, references: Sequence[str] = ()) -> None:
        """Raise UsageError if bert-score is not installed."""
        if importlib.util.find_spec("bert_score") is None:
            raise UsageError(
                "metric bertscore requires bert-score; install it: pip install 'ulskip[bertscore]'"
                " or pip install bert-score"
            )

    def score(self, answers: Answers) -> Scores:
        """Compute the mean and its paired comparison with the full model."""
        self.check()
        from bert_score import BERTScorer
        from transformers import AutoConfig
        from transformers.utils import logging

        logging.disable_progress_bar()
        if (
            self.model
            and self.model.startswith((".", "/", "~"))
            and not user_path(self.model, "a metric's model").exists()
        ):
            raise UsageError(
                f"expected task.bertscore_model to be a hub id or a folder, got {self.model}, which"
                " does not exist"
            )

        def segments(hypotheses: list[str]) -> NDArray[np.float64]:
            _, _, f1 = scorer.score(hypotheses, answers.references, batch_size=BATCH_SIZE)
            return 100 * np.asarray(f1, dtype=np.float64)

        try:
            depth = None  # bert-score has a default layer for known models
            if self.model and Path(self.model).exists():
                depth = AutoConfig.from_pretrained(self.model).num_hidden_layers
            with environment.offline_if_hub_unreachable():
                scorer = BERTScorer(model_type=self.model, lang=self.language, num_layers=depth)
            length = getattr(scorer._model.config, "max_position_embeddings", None) or UNLIMITED
            scorer._tokenizer.model_max_length = min(scorer._tokenizer.model_max_length, length)
            own, full = segments(answers.hypotheses), answers.full and segments(answers.full)
        except Exception as error:
            reason = str(error).strip() or type(error).__name__
            raise _scoring_error(
                "bertscore", self.model or f"the default for '{self.language}'", reason
            ) from None
        return _scores("bertscore", own, full, f"BERTScore F1 {scorer.hash}")


def bertscore(scoring: Scoring) -> BertScore:
    """Make BERTScore for the target language, or for English if the task names no language."""
    return BertScore(scoring.bertscore_model, scoring.target_language or "en")


def _scores(name: str, own: NDArray[np.float64], full: Any, signature: str) -> Scores:
    compared = {} if full is None else {name: compare(own, full)}
    return Scores({name: float(own.mean())}, {name: signature}, compared)


def _scoring_error(metric: str, model: str, reason: str) -> RunError:
    first = reason.split("\n")[0][:160]
    key = f"task.{metric}_model (ulskip score: --{metric}-model)"
    return RunError(
        f"metric {metric}: cannot score with {model} ({first}); set {key} to a local model"
    )
