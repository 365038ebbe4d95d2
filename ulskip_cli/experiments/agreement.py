"""Agreement with the full model: how often a schedule predicts the tokens of the full model's
answers, and how similar its distributions are.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from ulskip_cli.engines.decoder import Decoder
from ulskip_cli.engines.scoring import given_logits
from ulskip_cli.inference.batching import BatchSize, in_batches, padded
from ulskip_cli.inference.teacher_forcing import EncodedPrompt, encode_prompt, predict_response
from ulskip_cli.tasks.metrics.scores import NUM_RESAMPLES, SEED


@dataclass(frozen=True)
class AgreementMeter:
    """The full model's answers to the prompts of a task, on which schedules are compared with the
    full model.
    """

    full: Decoder
    prompts: Sequence[list[int]]
    answers: Sequence[list[int]]  # token ids of the full model's answer to each prompt
    size: BatchSize
    pad_token_id: int

    def measure(
        self, decoder: Decoder, on_batch: Callable[[int], None] = lambda done: None
    ) -> dict[str, float]:
        """Compare a schedule with the full model by teacher forcing, and return values for a
        record. They are empty if all answers are empty, or if an engine of another library gives no
        logits.

        `on_batch` gets the number of done answers.
        """
        lengths = [len(p) + len(a) for p, a in zip(self.prompts, self.answers, strict=True)]
        order = sorted((i for i, ids in enumerate(self.answers) if ids), key=lambda i: -lengths[i])
        if not order or decoder.is_runtime or self.full.is_runtime:
            return {}
        sums = list[NDArray[np.float64]]()
        for _, values in in_batches(order, self.size, lambda batch: self._sums(decoder, batch)):
            sums.extend(values)
            on_batch(len(sums))
        same, divergence, positions = np.array(sums).T
        return {
            **mean_interval("agreement", same, positions),
            **mean_interval("kl_divergence", divergence, positions),
        }

    @torch.inference_mode()
    def _sums(self, decoder: Decoder, batch: Sequence[int]) -> NDArray[np.float64]:
        """Return, for each answer of a batch, its agreeing positions, its divergence and its
        positions [batch, 3].
        """
        ids, mask = self._to_device(decoder, [self.answers[i] for i in batch], left=False)
        prompt = self._prompt(self.full, batch)
        full = predict_response(self.full.stages, prompt, ids, mask)
        if decoder.prompt_model is not self.full.prompt_model:
            prompt = self._prompt(decoder, batch)
        own, _ = given_logits(decoder, prompt, ids, mask)
        sums = [compare(*logits) for logits in zip(full, own, mask, strict=True)]
        return np.array([(*values, float(m.sum())) for values, m in zip(sums, mask, strict=True)])

    def _prompt(self, decoder: Decoder, batch: Sequence[int]) -> EncodedPrompt:
        ids, mask = self._to_device(decoder, [self.prompts[i] for i in batch], left=True)
        return encode_prompt(decoder.prompt_model, ids, mask)

    def _to_device(
        self, decoder: Decoder, rows: Sequence[list[int]], left: bool
    ) -> tuple[Tensor, Tensor]:
        ids, mask = padded(rows, self.pad_token_id, left=left)
        return ids.to(decoder.device), mask.to(decoder.device)


def compare(full: Tensor, own: Tensor, mask: Tensor) -> tuple[float, float]:
    """Return the number of positions with the same most likely token, and the summed KL divergence,
    of logits [positions, vocab_size] at the positions of `mask`.
    """
    shown = mask.bool()
    full, own = full[shown].float(), own[shown].float()
    same = (full.argmax(-1) == own.argmax(-1)).sum()
    divergence = functional.kl_div(
        own.log_softmax(-1), full.log_softmax(-1), log_target=True, reduction="sum"
    )
    return float(same), float(divergence)


def mean_interval(
    key: str, sums: NDArray[np.float64], counts: NDArray[np.float64]
) -> dict[str, float]:
    """Return the mean over all positions, and its 95% bootstrap interval over answers.

    Each answer has a sum and a number of positions.
    """
    drawn = np.random.default_rng(SEED).integers(len(sums), size=(NUM_RESAMPLES, len(sums)))
    low, high = np.quantile(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1), [0.025, 0.975])
    mean = sums.sum() / counts.sum()
    return {key: float(mean), f"{key}_low": float(low), f"{key}_high": float(high)}
