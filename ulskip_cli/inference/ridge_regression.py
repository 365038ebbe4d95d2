"""Ridge regression of the corrections of hidden states, accumulated over batches in float64."""

from dataclasses import dataclass

import torch
from torch import Tensor

DEFAULT_RIDGE = 0.1  # lambda, as a multiple of the mean variance of the inputs
_LEAST_VARIANCE = 1e-9  # of the inputs, as a share of their mean square


@dataclass
class RidgeRegression:
    """Sums of a regression of `d` on `x`, accumulated in float64."""

    gram: Tensor  # [inputs, inputs]
    cross: Tensor  # [inputs, outputs]
    x_sum: Tensor
    d_sum: Tensor
    count: int = 0

    @classmethod
    def empty(cls, inputs: int, outputs: int) -> "RidgeRegression":
        """Start with no positions."""
        shapes = ((inputs, inputs), (inputs, outputs), (inputs,), (outputs,))
        gram, cross, x_sum, d_sum = (torch.zeros(shape, dtype=torch.float64) for shape in shapes)
        return cls(gram, cross, x_sum, d_sum)

    def add(self, x: Tensor, d: Tensor) -> None:
        """Add positions: `x` [count, inputs], `d` [count, outputs]."""
        x, d = x.double().cpu(), d.double().cpu()
        self.gram += x.T @ x
        self.cross += x.T @ d
        self.x_sum += x.sum(0)
        self.d_sum += d.sum(0)
        self.count += len(x)

    def solve(self, ridge: float, has_bias: bool = True) -> dict[str, Tensor]:
        """Return `weight` [inputs, outputs] and, with `has_bias`, `bias` [outputs] of `d = x weight
        + bias`; lambda is `ridge` times the mean of the Gram matrix's diagonal.
        """
        x_mean, d_mean = self.x_sum / self.count, self.d_sum / self.count
        gram, cross = self.gram, self.cross
        if has_bias:
            gram = gram - self.count * torch.outer(x_mean, x_mean)
            cross = cross - self.count * torch.outer(x_mean, d_mean)
        least = (
            _LEAST_VARIANCE * self.gram.diagonal().mean() + torch.finfo(torch.float64).tiny
        )  # of inputs that do not vary
        scale = gram.diagonal().mean().clamp_min(least)
        weight = torch.linalg.solve(
            gram + ridge * scale * torch.eye(len(gram), dtype=gram.dtype), cross
        )
        parts = {"weight": weight}
        return {**parts, "bias": d_mean - x_mean @ weight} if has_bias else parts
