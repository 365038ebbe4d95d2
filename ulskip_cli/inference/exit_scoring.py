"""Confidence measures of early exit (CALM, arXiv:2207.07061), and teacher-forced logits under an exit rule."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from ulskip_cli.core.exit_rule import ExitRule
from ulskip_cli.inference import shallow_view
from ulskip_cli.inference.layerwise import LayerwiseModel
from ulskip_cli.inference.teacher_forcing import EncodedPrompt


def softmax_diff(logits: Tensor) -> Tensor:
    """Return p1 - p2, the difference of the two largest probabilities: [..., vocab_size] to [...]."""
    best = torch.softmax(logits.float(), dim=-1).topk(2, dim=-1).values
    return best[..., 0] - best[..., 1]


def softmax_max(logits: Tensor) -> Tensor:
    """Return p1, the largest probability: [..., vocab_size] to [...]."""
    return torch.softmax(logits.float(), dim=-1).amax(dim=-1)


def cosine(hidden: Tensor, before: Tensor) -> Tensor:
    """Return the cosine similarity of the hidden states at two consecutive checks: [..., hidden_size] to [...]."""
    return functional.cosine_similarity(hidden.float(), before.float(), dim=-1)


LOGIT_CONFIDENCES = {"softmax_diff": softmax_diff, "softmax_max": softmax_max}


def hidden_states(
    model: PreTrainedModel,
    layerwise: LayerwiseModel,
    prompt: EncodedPrompt,
    response_ids: Tensor,
    response_mask: Tensor | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """Yield each depth with the hidden states [batch, response_len - 1, hidden_size] that predict all tokens but the first.

    `response_ids` and `response_mask` are [batch, response_len], padded on the right; `prompt` is not changed.
    """
    # One differentiable pass gives the states of all decode steps, because early exit reads only keys of the full model.
    inputs = response_ids[:, :-1]
    inputs_mask = torch.ones_like(inputs) if response_mask is None else response_mask[:, :-1].to(inputs.dtype)
    mask = torch.cat([prompt.mask, inputs_mask], dim=1)
    cache = shallow_view.fork_cache(prompt.cache, range(len(layerwise.layers)))
    entry = layerwise.enter(inputs, cache, **shallow_view.placing(model, mask, inputs.shape[1]))
    hidden = entry.hidden
    for index in range(len(layerwise.layers)):
        hidden = layerwise.layer(index, hidden, entry)
        yield index + 1, hidden


def confidences(
    model: PreTrainedModel,
    layerwise: LayerwiseModel,
    rule: ExitRule,
    prompt: EncodedPrompt,
    response_ids: Tensor,
    response_mask: Tensor,
) -> Iterator[tuple[int, Tensor | None, Tensor]]:
    """Yield depth, confidence [batch, response_len - 1] and logits [batch, response_len - 1, vocab_size] of each check.

    A batch exits together, so each sequence gets the lowest confidence of all unfinished sequences. The confidence is None
    after the last layer and at the first check of `cosine`. `hidden_states` describes the arguments.
    """
    before: Tensor | None = None
    counts = response_mask[:, 1:].bool()
    for depth, hidden in hidden_states(model, layerwise, prompt, response_ids, response_mask):
        if depth not in rule.checks and depth != rule.num_layers:
            continue
        logits, confidence = layerwise.logits(hidden), None
        if depth != rule.num_layers:
            if rule.confidence != "cosine":
                confidence = LOGIT_CONFIDENCES[rule.confidence](logits)
            elif before is not None:
                confidence = cosine(hidden, before)
            before = hidden
        if confidence is not None:
            confidence = confidence.masked_fill(~counts, torch.inf).amin(dim=0).expand_as(confidence)
        yield depth, confidence, logits


def exit_logits(
    model: PreTrainedModel,
    layerwise: LayerwiseModel,
    rule: ExitRule,
    prompt: EncodedPrompt,
    response_ids: Tensor,
    response_mask: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return the logits [batch, response_len, vocab_size] and exit depths [batch, response_len - 1] of a response."""
    steps = response_ids.shape[1] - 1  # the forward pass of the prompt predicts the first token
    if not steps:
        return prompt.first_logits, response_ids[:, :0]
    threshold = torch.tensor([rule.threshold_at(step) for step in range(steps)], dtype=torch.float64).to(response_ids.device)
    depths = torch.zeros_like(response_ids[:, 1:])
    chosen: Tensor | None = None
    for depth, confidence, logits in confidences(model, layerwise, rule, prompt, response_ids, response_mask):
        exits = depths == 0
        if depth != rule.num_layers:
            exits = exits & (confidence.double() >= threshold) if confidence is not None else torch.zeros_like(exits)
        depths = depths.masked_fill(exits, depth)
        chosen = logits if chosen is None else torch.where(exits[..., None], logits, chosen)
    assert chosen is not None
    return torch.cat([prompt.first_logits, chosen], dim=1), depths
