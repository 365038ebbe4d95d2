"""Teacher forcing: logits and losses of given responses, computed by the layers that decode."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache, PreTrainedModel

from ulskip_cli.inference import kv_cache, shallow_view
from ulskip_cli.inference.shallow_view import StageView

PART_SIZE = 2**22  # logits of one part: 16 MiB in float32


@dataclass(frozen=True)
class EncodedPrompt:
    """The KV cache and the last logits of a prompt, which several second passes can use."""

    first_logits: Tensor  # [batch, 1, vocab_size], predict the first response token
    cache: DynamicCache
    mask: Tensor  # [batch, prompt_len]

    @property
    def nbytes(self) -> int:
        """The bytes of the cache and the logits."""
        return kv_cache.kv_bytes(self.cache) + self.first_logits.nbytes

    def whole_mask(self, inputs: Tensor, response_mask: Tensor | None) -> Tensor:
        """Return the mask [batch, prompt_len + count] of the prompt and `inputs` [batch, count],
        the beginning of a response. Without `response_mask` [batch, count or more], no padding is
        hidden.
        """
        count = inputs.shape[1]
        after = torch.ones_like(inputs) if response_mask is None else response_mask[:, :count]
        return torch.cat([self.mask, after.to(inputs.dtype)], dim=1)


def encode_prompt(model: PreTrainedModel, prompt_ids: Tensor, prompt_mask: Tensor) -> EncodedPrompt:
    """Run the first pass: the prompt [batch, prompt_len] through every layer of `model`."""
    cache = kv_cache.new_cache(model)
    first = shallow_view.forward_with_cache(model, prompt_ids, prompt_mask, cache, last_only=True)
    return EncodedPrompt(first, cache, prompt_mask)


def predict_response(
    stages: Sequence[StageView],
    prompt: EncodedPrompt,
    response_ids: Tensor,
    response_mask: Tensor | None = None,
) -> Tensor:
    """Run the second pass: the view of each stage reads its part of the response [batch,
    response_len]; return the logits [batch, response_len, vocab_size] that predict its tokens.
    `prompt` is not changed.
    """
    cache = kv_cache.fork_cache(prompt.cache, stages[0].places)
    inputs, prompt_len = response_ids[:, :-1], prompt.mask.shape[1]
    mask = prompt.whole_mask(inputs, response_mask)
    logits = [prompt.first_logits]
    # the decode step at which each stage ends; step i reads token i of the response
    ends = [*(stage.first_step for stage in stages[1:]), inputs.shape[1]]
    for stage, end in zip(stages, ends, strict=True):
        ids, seen = inputs[:, stage.first_step : end], mask[:, : prompt_len + end]
        if ids.shape[1]:  # else the response ends before the stage
            kv_cache.prune_cache(cache, stage.places)
            logits.append(shallow_view.forward_with_cache(stage.view, ids, seen, cache))
    return torch.cat(logits, dim=1)


def response_losses(logits: Tensor, response_ids: Tensor) -> Tensor:
    """Return the cross-entropy [batch, response_len] in nats of logits [batch, response_len,
    vocab_size].
    """
    losses = [
        functional.cross_entropy(part.float(), ids, reduction="none")
        for part, ids in _in_parts(logits.flatten(0, 1), response_ids.flatten())
    ]
    return torch.cat(losses).view(response_ids.shape)


def divergence(target: Tensor, logits: Tensor) -> Tensor:
    """Return KL(target || logits) in nats, both [positions, vocab_size], summed over the
    positions.
    """
    sums = [
        functional.kl_div(
            student.float().log_softmax(-1),
            teacher.float().log_softmax(-1),
            reduction="sum",
            log_target=True,
        )
        for student, teacher in _in_parts(logits, target)
    ]
    return torch.stack(sums).sum()


def _in_parts(logits: Tensor, others: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Split logits [positions, vocab_size], and another tensor [positions, ...], into parts small
    enough that memory allocated for one is used again for the next.
    """
    positions = max(1, PART_SIZE // logits.shape[-1])
    return zip(torch.split(logits, positions), torch.split(others, positions), strict=True)
