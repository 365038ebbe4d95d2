"""Given responses under early exit: where each token leaves, and how well it is predicted there, in one pass.

Every key that decoding reads is the full model's, so that one pass of the full model over a given response holds what every
step of decoding it would have seen.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ulskip_cli.inference import confidence, shallow_view
from ulskip_cli.inference.layerwise import LayerwiseModel
from ulskip_cli.inference.teacher_forcing import EncodedPrompt
from ulskip_cli.strategies.exit_rule import ExitRule


def hidden_states(
    model: PreTrainedModel,
    parts: LayerwiseModel,
    prompt: EncodedPrompt,
    response_ids: Tensor,
    response_mask: Tensor | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """A response's hidden states at every depth; differentiable, and `prompt` stays as it is.

    Args:
        model: that encoded the prompt.
        parts: of it.
        prompt: encoded.
        response_ids: [batch, response_len], padded on the right.
        response_mask: [batch, response_len], 1 for tokens.

    Yields:
        Depth, and [batch, response_len - 1, hidden_size], which predict all tokens but the first.
    """
    seen = response_ids[:, :-1]
    seen_mask = torch.ones_like(seen) if response_mask is None else response_mask[:, :-1].to(seen.dtype)
    mask = torch.cat([prompt.mask, seen_mask], dim=1)
    cache = shallow_view.fork_cache(prompt.cache, range(len(parts.layers)))
    entry = parts.enter(seen, cache, **shallow_view.placing(model, mask, seen.shape[1]))
    hidden = entry.hidden
    for index in range(len(parts.layers)):
        hidden = parts.layer(index, hidden, entry)
        yield index + 1, hidden


def confidences(
    model: PreTrainedModel,
    parts: LayerwiseModel,
    rule: ExitRule,
    prompt: EncodedPrompt,
    response_ids: Tensor,
    response_mask: Tensor,
) -> Iterator[tuple[int, Tensor | None, Tensor]]:
    """How sure the model is at every check, and its logits there; shapes as for `hidden_states`.

    In a batch all sequences are as sure as the least sure of those that are not done.

    Yields:
        Depth; the confidences [batch, response_len - 1], None where there is none to decide by: behind the last layer, and with
        cosine at the first check; and the logits there [batch, response_len - 1, vocab_size].
    """
    before: Tensor | None = None
    counts = response_mask[:, 1:].bool()
    for depth, hidden in hidden_states(model, parts, prompt, response_ids, response_mask):
        if depth not in rule.checks and depth != rule.num_layers:
            continue
        logits, sure = parts.logits(hidden), None
        if depth != rule.num_layers:
            if rule.confidence != "cosine":
                sure = confidence.OF_LOGITS[rule.confidence](logits)
            elif before is not None:
                sure = confidence.cosine(hidden, before)
            before = hidden
        if sure is not None:
            sure = sure.masked_fill(~counts, torch.inf).amin(dim=0).expand_as(sure)
        yield depth, sure, logits


def exit_logits(
    model: PreTrainedModel,
    parts: LayerwiseModel,
    rule: ExitRule,
    prompt: EncodedPrompt,
    response_ids: Tensor,
    response_mask: Tensor,
) -> tuple[Tensor, Tensor]:
    """The logits that predict every response token when its predecessors are given, and where they come from.

    Returns:
        [batch, response_len, vocab_size], and the depths [batch, response_len - 1] of all tokens but the first, which the
        prompt's own pass predicts.
    """
    steps = response_ids.shape[1] - 1
    if not steps:
        return prompt.first_logits, response_ids[:, :0]
    threshold = torch.tensor([rule.threshold_at(step) for step in range(steps)], dtype=torch.float64).to(response_ids.device)
    depths = torch.zeros_like(response_ids[:, 1:])
    chosen: Tensor | None = None
    for depth, sure, logits in confidences(model, parts, rule, prompt, response_ids, response_mask):
        leaves = depths == 0
        if depth != rule.num_layers:
            leaves = leaves & (sure.double() >= threshold) if sure is not None else torch.zeros_like(leaves)
        depths = depths.masked_fill(leaves, depth)
        chosen = logits if chosen is None else torch.where(leaves[..., None], logits, chosen)
    assert chosen is not None
    return torch.cat([prompt.first_logits, chosen], dim=1), depths
