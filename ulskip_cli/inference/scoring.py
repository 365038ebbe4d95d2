"""The decode loss: how well a schedule predicts the references, token by token."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ulskip_cli.inference import shallow_view
from ulskip_cli.inference.batching import BatchSize, in_batches, padded
from ulskip_cli.inference.decoder import Decoder
from ulskip_cli.inference.engines.base import ExitStats
from ulskip_cli.inference.exit_scoring import exit_logits
from ulskip_cli.inference.teacher_forcing import EncodedPrompt, encode_prompt, predict_response, response_losses
from ulskip_cli.tasks.encoding import EncodedExample


@dataclass
class ReferenceLoss:
    """The decode loss of one schedule after another on the same examples.

    Attributes:
        examples: prompts and responses.
        size: pairs at once.
        pad: padding id.
        held_bytes: keys and values of encoded prompts to keep for the next schedule, which must then encode them alike.
        exits: where the last schedule's steps ended on the references, where they may end at any depth.
    """

    examples: Sequence[EncodedExample]
    size: BatchSize
    pad: int
    held_bytes: int = 0
    exits: ExitStats = field(default_factory=ExitStats)
    _held: dict[int, EncodedPrompt] = field(default_factory=dict)

    def of(self, decoder: Decoder, on_batch: Callable[[int], None] = lambda done: None) -> float:
        """Mean cross-entropy of all reference tokens under one schedule, in nats a token, the end token included.

        Args:
            decoder: the model under it.
            on_batch: called with the number of pairs done.
        """
        self.exits = ExitStats()
        order = sorted(range(len(self.examples)), key=lambda i: -self._length(self.examples[i]))
        total, count, done = 0.0, 0, 0
        for batch, (loss, tokens) in in_batches(order, self.size, lambda batch: self._batch_loss(decoder, batch)):
            total, count, done = total + loss, count + tokens, done + len(batch)
            on_batch(done)
        return total / count

    @staticmethod
    def _length(example: EncodedExample) -> int:
        return len(example.prompt_ids) + len(example.response_ids)

    def _batch_loss(self, decoder: Decoder, batch: Sequence[int]) -> tuple[float, int]:
        """Summed loss of a batch's responses, and their tokens."""
        examples = [self.examples[i] for i in batch]
        ids, mask = (t.to(decoder.device) for t in padded([one.response_ids for one in examples], self.pad, left=False))
        with torch.inference_mode():
            logits, depths = given_logits(decoder, self._prompt(decoder, batch), ids, mask)
            losses = response_losses(logits, ids)
        if depths is not None:
            self.exits += ExitStats(Counter(depths[mask[:, 1:].bool()].tolist()))
        return float((losses * mask).sum()), int(mask.sum())

    def _prompt(self, decoder: Decoder, batch: Sequence[int]) -> EncodedPrompt:
        """The batch's encoded prompts, from before where they were kept."""
        if batch[0] in self._held and len(self._held[batch[0]].mask) == len(batch):
            return self._held[batch[0]]
        prompts = padded([self.examples[i].prompt_ids for i in batch], self.pad, left=True)
        encoded = encode_prompt(decoder.prompt_model, *(tensor.to(decoder.device) for tensor in prompts))
        if sum(shallow_view.kv_bytes(one.cache) for one in (*self._held.values(), encoded)) <= self.held_bytes:
            self._held[batch[0]] = encoded
        return encoded


def given_logits(decoder: Decoder, prompt: EncodedPrompt, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor | None]:
    """What decoding would predict every token of the responses by, [batch, response_len, vocab_size].

    Beside it the depths of all tokens but the first, [batch, response_len - 1], where a step may end anywhere.
    """
    if decoder.exits:
        return exit_logits(decoder.model, decoder.parts, decoder.exits, prompt, ids, mask)
    return predict_response(decoder.stages, prompt, ids, mask), None
