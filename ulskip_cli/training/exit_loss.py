"""The loss of all exits of an early-exit model (CALM, Schuster et al. 2022, arXiv:2207.07061)."""

from collections.abc import Callable, Collection, Iterator

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from ulskip_cli.engines.early_exit import hidden_states
from ulskip_cli.inference.layerwise import LayerwiseModel
from ulskip_cli.inference.teacher_forcing import encode_prompt
from ulskip_cli.training.data import LossBatch

# Summed over the labelled positions, of logits [batch, count, vocab_size] and labels [batch,
# count].
CrossEntropy = Callable[[Tensor, Tensor], Tensor]


def exit_losses(
    model: PreTrainedModel,
    layerwise: LayerwiseModel,
    exits: Collection[int],
    batch: LossBatch,
    cross_entropy: CrossEntropy,
) -> Iterator[tuple[int, Tensor]]:
    """Yield each exit depth, and the cross-entropy of a batch's responses (summed, in nats) if all
    tokens exit there.

    Prompt and response run through every layer, so all keys and values equal the full model's. Only
    one exit's logits are in memory at a time; the backward pass computes the logits again.
    `layerwise` is `model` split at its layers.
    """
    prompt = encode_prompt(model, batch.prompt_ids, batch.prompt_mask)
    first = cross_entropy(prompt.first_logits, batch.labels[:, :1])
    if batch.response_ids.shape[1] == 1:
        yield from ((depth, first) for depth in sorted(exits))
        return

    def loss_at(hidden: Tensor) -> Tensor:
        return cross_entropy(layerwise.logits(hidden), batch.labels[:, 1:])

    for depth, hidden in hidden_states(
        model, layerwise, prompt, batch.response_ids, batch.is_labelled
    ):
        if depth in exits:
            needs_gradient = torch.is_grad_enabled()
            loss: Tensor = (
                checkpoint(loss_at, hidden, use_reentrant=False)
                if needs_gradient
                else loss_at(hidden)
            )
            yield depth, first + loss


def depth_weighted_mean(losses: Iterator[tuple[int, Tensor]]) -> Tensor:
    """Average the losses of all exits with weights in proportion to their depth, so that deep exits
    stay accurate.

    >>> float(depth_weighted_mean(iter([(1, torch.tensor(4.0)), (3, torch.tensor(8.0))])))
    7.0
    """
    weighted, total = torch.zeros(()), 0
    for depth, loss in losses:
        weighted, total = weighted.to(loss.device) + depth * loss, total + depth
    return weighted / total
