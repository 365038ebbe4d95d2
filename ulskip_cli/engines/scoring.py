"""The decode loss: the teacher-forced cross-entropy of the references under a schedule."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ulskip_cli.engines.base import ExitStats
from ulskip_cli.engines.decoder import Decoder
from ulskip_cli.engines.early_exit import exit_logits
from ulskip_cli.inference import kv_cache
from ulskip_cli.inference.batching import (
    BatchSize,
    free_bytes,
    in_batches,
    longest_first,
    padded,
)
from ulskip_cli.inference.teacher_forcing import (
    EncodedPrompt,
    encode_prompt,
    predict_response,
    response_losses,
)
from ulskip_cli.tasks.encoding import EncodedExample

HELD_BYTES = 2**30  # of encoded prompts, which the next measurement uses again


@dataclass
class EncodedPrompts:
    """The prompts of a task, encoded in batches. Those that fit into HELD_BYTES and into a quarter
    of the free memory are kept until another model encodes.
    """

    prompts: Sequence[list[int]]
    pad_token_id: int
    _held: dict[tuple[int, ...], EncodedPrompt] = field(default_factory=dict)
    _model: PreTrainedModel | None = None

    def tensors(self, batch: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the token ids and the mask [batch, prompt_len] of the prompts at these indices."""
        return padded([self.prompts[i] for i in batch], self.pad_token_id, left=True, device=device)

    def of(self, model: PreTrainedModel, batch: Sequence[int]) -> EncodedPrompt:
        """Return the prompts at these indices, which `model` encodes."""
        if model is not self._model:
            self._model, self._held = model, {}
        if tuple(batch) in self._held:
            return self._held[tuple(batch)]
        encoded = encode_prompt(model, *self.tensors(batch, model.device))
        caches = [prompt.cache for prompt in (*self._held.values(), encoded)]
        if sum(map(kv_cache.kv_bytes, caches)) <= min(HELD_BYTES, free_bytes(model.device) // 4):
            self._held[tuple(batch)] = encoded
        return encoded


@dataclass
class ReferenceLoss:
    """Computes the decode loss of several schedules on the same examples."""

    examples: Sequence[EncodedExample]
    size: BatchSize
    pad_token_id: int
    # exit depths of the last schedule on the references
    exits: ExitStats = field(default_factory=ExitStats)

    def __post_init__(self) -> None:
        prompts = [example.prompt_ids for example in self.examples]
        self.prompts = EncodedPrompts(prompts, self.pad_token_id)

    def of(self, decoder: Decoder, on_batch: Callable[[int], None] = lambda done: None) -> float:
        """Return the mean cross-entropy per reference token in nats; `on_batch` gets the number of
        done examples.
        """
        self.exits = ExitStats()
        order = longest_first(list(map(len, self.prompts.prompts)))
        total, count, done = 0.0, 0, 0
        for batch, (loss, tokens) in in_batches(
            order, self.size, lambda batch: self._batch_loss(decoder, batch)
        ):
            total, count, done = total + loss, count + tokens, done + len(batch)
            on_batch(done)
        return total / count

    def _batch_loss(self, decoder: Decoder, batch: Sequence[int]) -> tuple[float, int]:
        """Return the summed cross-entropy of the responses of a batch, and the number of their
        tokens.
        """
        responses = [self.examples[i].response_ids for i in batch]
        ids, mask = padded(responses, self.pad_token_id, left=False, device=decoder.device)
        if decoder.is_runtime:
            losses = decoder.losses(*self.prompts.tensors(batch, decoder.device), ids)
        else:
            with torch.inference_mode():
                prompt = self.prompts.of(decoder.prompt_model, batch)
                logits, depths = given_logits(decoder, prompt, ids, mask)
                losses = response_losses(logits, ids)
            if depths is not None:
                self.exits += ExitStats(Counter(depths[mask[:, 1:].bool()].tolist()))
        return float((losses * mask).sum()), int(mask.sum())


def given_logits(
    decoder: Decoder, prompt: EncodedPrompt, ids: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Return the teacher-forced logits [batch, response_len, vocab_size] of a response and its exit
    depths.

    `ids` and `mask` are [batch, response_len]; the depths are [batch, response_len - 1], or None
    without early exit.
    """
    if decoder.exits:
        return exit_logits(decoder.layerwise, decoder.exits, prompt, ids, mask)
    return predict_response(decoder.stages, prompt, ids, mask), None
