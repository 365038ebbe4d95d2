"""The decode loss: how well a schedule predicts the references, token by token."""

from collections.abc import Callable, Sequence

import torch

from ulskip_cli.generation.batches import BatchSize, in_batches
from ulskip_cli.generation.decode import Decoder
from ulskip_cli.generation.encoding import Encoded, padded
from ulskip_cli.generation.teacher_forcing import response_logits, response_losses


def decode_loss(
    decoder: Decoder,
    examples: Sequence[Encoded],
    size: BatchSize,
    pad: int,
    on_batch: Callable[[int], None] = lambda done: None,
) -> float:
    """Mean cross-entropy of all reference tokens under the schedule, in nats a token, the end token included.

    Args:
        decoder: the model under a schedule.
        examples: prompts and responses.
        size: pairs at once.
        pad: padding id.
        on_batch: called with the number of pairs done.
    """
    order = sorted(examples, key=lambda one: -len(one.prompt_ids) - len(one.response_ids))
    total, count, done = 0.0, 0, 0
    for batch, (loss, tokens) in in_batches(order, size, lambda batch: _batch_loss(decoder, batch, pad)):
        total, count, done = total + loss, count + tokens, done + len(batch)
        on_batch(done)
    return total / count


def _batch_loss(decoder: Decoder, batch: Sequence[Encoded], pad: int) -> tuple[float, int]:
    """Summed loss of a batch's responses, and their tokens."""
    prompt_ids, prompt_mask = padded([one.prompt_ids for one in batch], pad, left=True)
    response_ids, mask = padded([one.response_ids for one in batch], pad, left=False)
    prompt_ids, prompt_mask, response_ids, mask = (
        tensor.to(decoder.device) for tensor in (prompt_ids, prompt_mask, response_ids, mask)
    )
    with torch.inference_mode():
        logits = response_logits(decoder.prompt_model, decoder.stages, prompt_ids, prompt_mask, response_ids, mask)
        losses = response_losses(logits, response_ids)
    return float((losses * mask).sum()), int(mask.sum())
