"""The loss of every exit at once: what early exit is trained by (CALM, Schuster et al. 2022, arXiv:2207.07061)."""

from collections.abc import Callable, Collection, Iterator

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from ulskip_cli.inference.exit_scoring import hidden_states
from ulskip_cli.inference.layerwise import LayerwiseModel
from ulskip_cli.inference.teacher_forcing import encode_prompt

CrossEntropy = Callable[[Tensor, Tensor], Tensor]
"""Summed over the labelled positions, of logits [batch, count, vocab_size] and labels [batch, count]."""


def exit_losses(
    model: PreTrainedModel,
    parts: LayerwiseModel,
    exits: Collection[int],
    batch: tuple[Tensor, Tensor, Tensor, Tensor],
    response_mask: Tensor,
    cross_entropy: CrossEntropy,
) -> Iterator[tuple[int, Tensor]]:
    """The summed cross-entropy of a batch's responses when all their tokens leave at one depth, for each of several.

    The prompt runs through every layer and predicts the first token, whatever the exit; so does the response, whose keys
    are the full model's at every depth. The logits of one exit at a time are held, and made anew for the gradients.

    Args:
        model: all of it.
        parts: of it.
        exits: depths, numbers of layers.
        batch: prompt_ids and prompt_mask, [batch, prompt_len], padded on the left; response_ids and labels,
            [batch, response_len], padded on the right.
        response_mask: [batch, response_len], 1 for tokens.
        cross_entropy: of logits and labels.

    Yields:
        Depth, and a scalar in nats.
    """
    prompt_ids, prompt_mask, response_ids, labels = batch
    prompt = encode_prompt(model, prompt_ids, prompt_mask)
    first = cross_entropy(prompt.first_logits, labels[:, :1])
    if response_ids.shape[1] == 1:
        yield from ((depth, first) for depth in sorted(exits))
        return

    def behind(hidden: Tensor) -> Tensor:
        return cross_entropy(parts.logits(hidden), labels[:, 1:])

    for depth, hidden in hidden_states(model, parts, prompt, response_ids, response_mask):
        if depth in exits:
            held = torch.is_grad_enabled()
            loss: Tensor = checkpoint(behind, hidden, use_reentrant=False) if held else behind(hidden)
            yield depth, first + loss


def averaged(losses: Iterator[tuple[int, Tensor]]) -> Tensor:
    """Their mean with weights in proportion to the layer's index, so that deep exits keep their say.

    >>> float(averaged(iter([(1, torch.tensor(4.0)), (3, torch.tensor(8.0))])))
    7.0
    """
    weighted, total = torch.zeros(()), 0
    for depth, loss in losses:
        weighted, total = weighted.to(loss.device) + depth * loss, total + depth
    return weighted / total
