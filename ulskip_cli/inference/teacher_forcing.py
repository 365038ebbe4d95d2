"""Given responses under a schedule, scored exactly as decoding would score them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache, PreTrainedModel

from ulskip_cli.inference import shallow_view
from ulskip_cli.inference.shallow_view import StageView


def response_logits(
    prompt_model: PreTrainedModel,
    stages: Sequence[StageView],
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    response_ids: Tensor,
    response_mask: Tensor | None = None,
) -> Tensor:
    """The logits that predict every response token when its predecessors are given (Sec. 3, arXiv:2404.06954).

    Two passes: the prompt through `prompt_model`, whose last position predicts the first response token; then
    the response through the views of `stages` over the prompt's keys and values. Differentiable, the cache included.

    Args:
        prompt_model: encodes the prompt; the full model, or the view itself.
        stages: run the response.
        prompt_ids: [batch, prompt_len], padded on the left.
        prompt_mask: [batch, prompt_len], 1 for tokens, 0 for padding.
        response_ids: [batch, response_len], padded on the right with anything.
        response_mask: [batch, response_len], 1 for tokens; without it padding counts positions, which a model with a table
            of positions may not have.

    Returns:
        [batch, response_len, vocab_size]; entries at padding are meaningless and for the caller to mask.
    """
    prompt = encode_prompt(prompt_model, prompt_ids, prompt_mask)
    return predict_response(stages, prompt, response_ids, response_mask)


@dataclass(frozen=True)
class EncodedPrompt:
    """What the first pass leaves for the second, as often as it is asked for."""

    first_logits: Tensor  # [batch, 1, vocab_size], they predict the first response token
    cache: DynamicCache
    mask: Tensor  # [batch, prompt_len]


def encode_prompt(model: PreTrainedModel, prompt_ids: Tensor, prompt_mask: Tensor) -> EncodedPrompt:
    """The first pass: a prompt through every layer of `model`; shapes as for `response_logits`."""
    cache = shallow_view.new_cache(model)
    first = shallow_view.forward_with_cache(model, prompt_ids, prompt_mask, cache, last_only=True)
    return EncodedPrompt(first, cache, prompt_mask)


def predict_response(
    stages: Sequence[StageView],
    prompt: EncodedPrompt,
    response_ids: Tensor,
    response_mask: Tensor | None = None,
) -> Tensor:
    """The second pass: a response through each stage's view over the keys and values that it keeps; `prompt` stays as it is."""
    if response_ids.shape[1] == 1:
        return prompt.first_logits
    cache = shallow_view.fork_cache(prompt.cache, stages[0].kept)
    seen, prompt_len = response_ids[:, :-1], prompt.mask.shape[1]
    seen_mask = torch.ones_like(seen) if response_mask is None else response_mask[:, :-1].to(seen.dtype)
    mask = torch.cat([prompt.mask, seen_mask], dim=1)
    logits = [prompt.first_logits]
    ends = [stage.first_step for stage in stages[1:]] + [seen.shape[1]]
    for stage, end in zip(stages, ends, strict=True):
        if stage.first_step < seen.shape[1]:
            shallow_view.prune_cache(cache, stage.kept)
            end = min(end, seen.shape[1])
            step_ids = seen[:, stage.first_step : end]
            logits.append(shallow_view.forward_with_cache(stage.view, step_ids, mask[:, : prompt_len + end], cache))
    return torch.cat(logits, dim=1)


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
