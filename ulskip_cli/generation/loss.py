"""The decode loss: how well a schedule predicts the references, token by token."""

from collections.abc import Callable, Sequence

import torch
from transformers import PreTrainedTokenizerBase

from ulskip_cli.generation.decode import Decoder
from ulskip_cli.generation.encoding import encode_pairs
from ulskip_cli.generation.teacher_forcing import response_logits, response_losses


def decode_loss(
    decoder: Decoder,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[tuple[str, str]],
    batch_size: int,
    on_batch: Callable[[int], None] = lambda done: None,
) -> float:
    """Mean cross-entropy of all reference tokens under the schedule, in nats a token, the end token included.

    Args:
        decoder: the model under a schedule.
        tokenizer: the model's.
        texts: (prompt, response) pairs.
        batch_size: pairs at once.
        on_batch: called with the number of pairs done.
    """
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i][0]) - len(texts[i][1]))
    total, count = 0.0, 0
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = encode_pairs(tokenizer, [texts[i] for i in chosen])
        response_ids, mask = batch.response_ids.to(decoder.device), batch.response_mask.to(decoder.device)
        with torch.inference_mode():
            logits = response_logits(
                decoder.prompt_model,
                decoder.view,
                decoder.kept,
                batch.prompt_ids.to(decoder.device),
                batch.prompt_mask.to(decoder.device),
                response_ids,
            )
            losses = response_losses(logits, response_ids)
        total += float((losses * mask).sum())
        count += int(mask.sum())
        on_batch(start + len(chosen))
    return total / count
