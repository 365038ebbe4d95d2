"""The validation loss: mean cross-entropy of all response tokens in nats, without smoothing or distillation."""

from collections.abc import Iterator

import torch

from ulskip_cli.strategies.schedule import Stage
from ulskip_cli.training.data import LossBatch, PairCollator, TokenPairs
from ulskip_cli.training.two_pass_loss import TwoPassLoss


def validation_loss(
    module: TwoPassLoss, stages: tuple[Stage, ...], pairs: TokenPairs, collator: PairCollator, batch_size: int
) -> float:
    """Compute the validation loss under one schedule."""
    plain = TwoPassLoss(module.model, module.prompt_layers).eval()
    total, count = 0.0, 0
    with torch.no_grad():
        for batch in _batches(module, pairs, collator, batch_size):
            total += plain.schedule_loss(batch, stages).item()
            count += int(batch.is_labelled.sum())
    module.train()
    return total / count


def exit_validation_losses(module: TwoPassLoss, pairs: TokenPairs, collator: PairCollator, batch_size: int) -> dict[int, float]:
    """Compute the validation loss at each exit depth, where every token exits at that depth."""
    plain = TwoPassLoss(module.model, module.prompt_layers, exits=module.exits).eval()
    totals, count = dict.fromkeys(module.exits, 0.0), 0
    with torch.no_grad():
        for batch in _batches(module, pairs, collator, batch_size):
            for depth, loss in plain.exit_losses(batch):
                totals[depth] += loss.item()
            count += int(batch.is_labelled.sum())
    module.train()
    return {depth: total / count for depth, total in totals.items()}


def _batches(module: TwoPassLoss, pairs: TokenPairs, collator: PairCollator, batch_size: int) -> Iterator[LossBatch]:
    """Yield all examples in batches on the model's device, the longest first."""
    order = sorted(range(len(pairs)), key=pairs.lengths().__getitem__, reverse=True)
    for start in range(0, len(order), batch_size):
        batch = collator([pairs[i] for i in order[start : start + batch_size]])
        yield LossBatch(**{key: value.to(module.base.device) for key, value in batch.items()})
