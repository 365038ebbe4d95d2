"""The decode loss: the teacher-forced cross-entropy of the references under a schedule."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ulskip_cli.engines.base import ExitStats
from ulskip_cli.engines.decoder import Decoder
from ulskip_cli.engines.early_exit import exit_logits
from ulskip_cli.inference import kv_cache
from ulskip_cli.inference.batching import BatchSize, in_batches, longest_first, padded
from ulskip_cli.inference.teacher_forcing import (
    EncodedPrompt,
    encode_prompt,
    predict_response,
    response_losses,
)
from ulskip_cli.tasks.encoding import EncodedExample


@dataclass
class ReferenceLoss:
    """Computes the decode loss of several schedules on the same examples."""

    examples: Sequence[EncodedExample]
    size: BatchSize
    pad_token_id: int
    # memory for encoded prompts, which the next schedule reuses; its prompt layers must be the same
    held_bytes: int = 0
    # exit depths of the last schedule on the references
    exits: ExitStats = field(default_factory=ExitStats)
    _held: dict[int, EncodedPrompt] = field(default_factory=dict)

    def of(self, decoder: Decoder, on_batch: Callable[[int], None] = lambda done: None) -> float:
        """Return the mean cross-entropy per reference token in nats; `on_batch` gets the number of
        done examples.
        """
        self.exits = ExitStats()
        order = longest_first([example.num_tokens for example in self.examples])
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
        examples = [self.examples[i] for i in batch]
        prompts = [example.prompt_ids for example in examples]
        responses = [example.response_ids for example in examples]
        prompt_ids, prompt_mask = padded(prompts, self.pad_token_id, True, decoder.device)
        ids, mask = padded(responses, self.pad_token_id, False, decoder.device)
        if decoder.is_runtime:
            losses = decoder.losses(prompt_ids, prompt_mask, ids)
        else:
            with torch.inference_mode():
                held = self._held.get(batch[0])
                if held is None or len(held.mask) != len(batch):
                    held = self._encode(decoder, batch[0], prompt_ids, prompt_mask)
                logits, depths = given_logits(decoder, held, ids, mask)
                losses = response_losses(logits, ids)
            if depths is not None:
                self.exits += ExitStats(Counter(depths[mask[:, 1:].bool()].tolist()))
        return float((losses * mask).sum()), int(mask.sum())

    def _encode(self, decoder: Decoder, first: int, ids: Tensor, mask: Tensor) -> EncodedPrompt:
        encoded = encode_prompt(decoder.prompt_model, ids, mask)
        caches = [prompt.cache for prompt in (*self._held.values(), encoded)]
        if sum(map(kv_cache.kv_bytes, caches)) <= self.held_bytes:
            self._held[first] = encoded
        return encoded


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
