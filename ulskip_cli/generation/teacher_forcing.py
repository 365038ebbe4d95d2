"""Given responses under a schedule, scored exactly as decoding would score them."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache, PreTrainedModel

from ulskip_cli import views


def response_logits(
    prompt_model: PreTrainedModel,
    decode_model: PreTrainedModel,
    kept: tuple[int, ...],
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    response_ids: Tensor,
    response_mask: Tensor | None = None,
) -> Tensor:
    """The logits that predict every response token when its predecessors are given (Sec. 3, arXiv:2404.06954).

    Two passes: the prompt through `prompt_model`, whose last position predicts the first response token; then
    the response through `decode_model` over the prompt's keys and values. Differentiable, the cache included.

    Args:
        prompt_model: encodes the prompt; the full model, or the view itself.
        decode_model: runs the response; a view of `prompt_model`, or the same model.
        kept: the layers of `prompt_model` that `decode_model` runs.
        prompt_ids: [batch, prompt_len], padded on the left.
        prompt_mask: [batch, prompt_len], 1 for tokens, 0 for padding.
        response_ids: [batch, response_len], padded on the right with anything.
        response_mask: [batch, response_len], 1 for tokens; without it padding counts positions, which a model with a table
            of positions may not have.

    Returns:
        [batch, response_len, vocab_size]; entries at padding are meaningless and for the caller to mask.
    """
    prompt = encode_prompt(prompt_model, prompt_ids, prompt_mask)
    return predict_response(decode_model, kept, prompt, response_ids, response_mask)


@dataclass(frozen=True)
class EncodedPrompt:
    """What the first pass leaves for the second, as often as it is asked for."""

    first_logits: Tensor  # [batch, 1, vocab_size], they predict the first response token
    cache: DynamicCache
    mask: Tensor  # [batch, prompt_len]


def encode_prompt(model: PreTrainedModel, prompt_ids: Tensor, prompt_mask: Tensor) -> EncodedPrompt:
    """The first pass: a prompt through every layer of `model`; shapes as for `response_logits`."""
    cache = views.new_cache(model)
    first = views.forward_with_cache(model, prompt_ids, prompt_mask, cache, last_only=True)
    return EncodedPrompt(first, cache, prompt_mask)


def predict_response(
    model: PreTrainedModel,
    kept: tuple[int, ...],
    prompt: EncodedPrompt,
    response_ids: Tensor,
    response_mask: Tensor | None = None,
) -> Tensor:
    """The second pass: a response through `model` over the keys and values of `kept`, which `prompt` is left with."""
    if response_ids.shape[1] == 1:
        return prompt.first_logits
    cache = views.fork_cache(prompt.cache, kept)
    seen = response_ids[:, :-1]
    seen_mask = torch.ones_like(seen) if response_mask is None else response_mask[:, :-1].to(seen.dtype)
    mask = torch.cat([prompt.mask, seen_mask], dim=1)
    return torch.cat([prompt.first_logits, views.forward_with_cache(model, seen, mask, cache)], dim=1)


def response_losses(logits: Tensor, response_ids: Tensor) -> Tensor:
    """Cross-entropy of every response token, in nats.

    Args:
        logits: [batch, response_len, vocab_size], as `response_logits` returns them.
        response_ids: [batch, response_len].

    Returns:
        [batch, response_len].
    """
    losses = functional.cross_entropy(logits.float().flatten(0, 1), response_ids.flatten(), reduction="none")
    return losses.view(response_ids.shape)
