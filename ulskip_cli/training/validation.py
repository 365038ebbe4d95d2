"""Compute the validation loss: mean cross-entropy of all response tokens in nats, without smoothing
or distillation.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from ulskip_cli.core.schedule import Stage
from ulskip_cli.training.data import LossBatch, PairCollator, TokenPairs
from ulskip_cli.training.two_pass_loss import TwoPassLoss

Losses = Iterable[tuple[int, Tensor]]


def validation_loss(
    module: TwoPassLoss,
    stages: tuple[Stage, ...],
    pairs: TokenPairs,
    collator: PairCollator,
    batch_size: int,
) -> float:
    """Return the validation loss under one schedule, in nats per token."""
    plain = module.plain()
    return _mean_losses(
        module, lambda batch: [(0, plain.schedule_loss(batch, stages))], pairs, collator, batch_size
    )[0]


def exit_validation_losses(
    module: TwoPassLoss, pairs: TokenPairs, collator: PairCollator, batch_size: int
) -> dict[int, float]:
    """Return the validation loss at each exit depth in nats per token, if every token exits at that
    depth.
    """
    plain = module.plain()
    return _mean_losses(module, plain.exit_losses, pairs, collator, batch_size)


def _mean_losses(
    module: TwoPassLoss,
    losses: Callable[[LossBatch], Losses],
    pairs: TokenPairs,
    collator: PairCollator,
    batch_size: int,
) -> dict[int, float]:
    """Divide the summed losses by the number of response tokens; the longest examples are processed
    first.
    """
    totals: dict[int, float] = {}
    count, order = 0, sorted(range(len(pairs)), key=pairs.lengths().__getitem__, reverse=True)
    with torch.no_grad():
        for start in range(0, len(order), batch_size):
            tensors = collator([pairs[i] for i in order[start : start + batch_size]])
            batch = LossBatch(
                **{key: value.to(module.base.device) for key, value in tensors.items()}
            )
            for depth, loss in losses(batch):
                totals[depth] = totals.get(depth, 0.0) + loss.item()
            count += int(batch.is_labelled.sum())
    module.train()
    return {depth: total / count for depth, total in totals.items()}
