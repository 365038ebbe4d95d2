"""COMET and BERTScore, which score with a neural model and are installed separately."""

from __future__ import annotations

import functools
import importlib.util
import json
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ulskip_cli.core import environment
from ulskip_cli.core.errors import RunError, UsageError, reason
from ulskip_cli.core.files import user_path
from ulskip_cli.tasks.metrics.scores import Answers, SegmentMetric

if TYPE_CHECKING:
    from bert_score import BERTScorer

    from ulskip_cli.tasks.metrics.scores import Segments

BATCH_SIZE = 16
UNLIMITED = 100_000  # tokens; some tokenizers have a maximum length that overflows a C integer
COMET_COMMAND = "comet-score"


class Comet(SegmentMetric):
    """COMET (Rei et al. 2022), mean over segments times 100; it runs as a command, because it needs
    an older transformers.
    """

    def signature(self) -> str:
        """The model."""
        return f"COMET {self.scoring.comet_model}"

    def check(self, references: Sequence[str] = ()) -> None:
        """Raise UsageError if the command is not on the PATH."""
        if shutil.which(COMET_COMMAND) is None:
            raise UsageError(
                f"metric comet requires the command {COMET_COMMAND} in a separate environment with"
                " an older transformers; install it with: pipx install unbabel-comet && pipx"
                " inject unbabel-comet 'setuptools<81'"
            )

    def segments(
        self, systems: Sequence[list[str]], answers: Answers
    ) -> list[Mapping[str, Segments]]:
        """Score all systems in one call of the command."""
        import torch

        model = self.scoring.comet_model
        local = user_path(model, "a metric's model")
        with tempfile.TemporaryDirectory() as folder:
            names = [f"system{i}" for i in range(len(systems))]
            texts = [answers.sources, answers.references, *systems]
            for name, lines in zip(("source", "reference", *names), texts, strict=True):
                text = "".join(f"{' '.join(line.split())}\n" for line in lines)
                (Path(folder) / name).write_text(text, "utf-8")
            checkpoint = str(local.resolve()) if local.is_file() else model
            command = [
                *(COMET_COMMAND, "-s", "source", "-r", "reference", "-t", *names),
                *(
                    "--quiet",
                    "--only_system",
                    "--model",
                    checkpoint,
                    "--batch_size",
                    str(BATCH_SIZE),
                ),
                *("--gpus", str(int(torch.cuda.is_available())), "--to_json", "scores.json"),
            ]
            process = subprocess.run(
                command, cwd=folder, capture_output=True, text=True, check=False
            )
            output = Path(folder) / "scores.json"
            if process.returncode or not output.is_file():
                text = process.stderr.strip() or process.stdout.strip()
                raise _scoring_error("comet", model, text.split("\n")[-1][:160])
            scored = json.loads(output.read_text("utf-8"))
        return [
            {"comet": 100 * np.array([segment["COMET"] for segment in scored[name]])}
            for name in names
        ]


class BertScore(SegmentMetric):
    """BERTScore (Zhang et al. 2020): F1 over the hidden states of hypothesis and reference; mean
    over segments, times 100. Without a target language, the texts are English.
    """

    @property
    def _language(self) -> str:
        return self.scoring.target_language or "en"

    def signature(self) -> str:
        """The model, its layer and the versions of packages."""
        return f"BERTScore F1 {self._scorer.hash}"

    def check(self, references: Sequence[str] = ()) -> None:
        """Raise UsageError if bert-score is not installed."""
        if importlib.util.find_spec("bert_score") is None:
            raise UsageError(
                "metric bertscore requires bert-score; install it: pip install 'ulskip[bertscore]'"
                " or pip install bert-score"
            )

    @functools.cached_property
    def _scorer(self) -> BERTScorer:
        from bert_score import BERTScorer
        from transformers import AutoConfig
        from transformers.utils import logging

        logging.disable_progress_bar()
        model, depth = self.scoring.bertscore_model, None  # known models have a default layer
        if model and Path(model).exists():
            depth = AutoConfig.from_pretrained(model).num_hidden_layers
        with environment.offline_if_hub_unreachable():
            scorer = BERTScorer(model_type=model, lang=self._language, num_layers=depth)
        length = getattr(scorer._model.config, "max_position_embeddings", None) or UNLIMITED
        scorer._tokenizer.model_max_length = min(scorer._tokenizer.model_max_length, length)
        return scorer

    def segments(
        self, systems: Sequence[list[str]], answers: Answers
    ) -> list[Mapping[str, Segments]]:
        """Score the systems one after another."""
        try:
            scored = [
                self._scorer.score(texts, answers.references, batch_size=BATCH_SIZE)
                for texts in systems
            ]
        except Exception as error:
            model = self.scoring.bertscore_model or f"the default for '{self._language}'"
            raise _scoring_error("bertscore", model, reason(error)) from None
        return [{"bertscore": 100 * np.asarray(f1, dtype=np.float64)} for _, _, f1 in scored]


def _scoring_error(metric: str, model: str, problem: str) -> RunError:
    key = f"task.{metric}_model (ulskip score: --{metric}-model)"
    return RunError(
        f"metric {metric}: cannot score with {model} ({problem}); set {key} to a local model"
    )
