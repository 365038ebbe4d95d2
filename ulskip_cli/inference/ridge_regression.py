"""Ridge regression of the corrections of hidden states, accumulated over batches in float64."""

from collections.abc import Iterable

import torch
from torch import Tensor

DEFAULT_RIDGE = 0.1  # lambda, as a multiple of the mean variance of the inputs
_LEAST_VARIANCE = 1e-9  # of the inputs, as a share of their mean square


def solve_ridge(
    pairs: Iterable[tuple[Tensor, Tensor]], ridge: float, has_bias: bool = True
) -> dict[str, Tensor]:
    """Return `weight` [inputs, outputs] and, with `has_bias`, `bias` [outputs] of `d = x weight +
    bias`; lambda is `ridge` times the mean of the Gram matrix's diagonal.

    `pairs` are the positions of each batch: `x` [count, inputs], `d` [count, outputs].
    """
    sums, count = list[Tensor](), 0
    for x, d in pairs:
        x, d = x.double().cpu(), d.double().cpu()
        parts = [x.T @ x, x.T @ d, x.sum(0), d.sum(0)]
        sums = (
            [total.add_(part) for total, part in zip(sums, parts, strict=True)] if sums else parts
        )
        count += len(x)
    squares, cross, x_sum, d_sum = sums
    x_mean, d_mean, gram = x_sum / count, d_sum / count, squares
    if has_bias:
        gram = gram - count * torch.outer(x_mean, x_mean)
        cross = cross - count * torch.outer(x_mean, d_mean)
    least = (
        _LEAST_VARIANCE * squares.diagonal().mean() + torch.finfo(torch.float64).tiny
    )  # of inputs that do not vary
    scale = gram.diagonal().mean().clamp_min(least)
    weight = torch.linalg.solve(
        gram + ridge * scale * torch.eye(len(gram), dtype=gram.dtype), cross
    )
    return {"weight": weight, **({"bias": d_mean - x_mean @ weight} if has_bias else {})}
