"""Ridge regression of the corrections of hidden states, accumulated over batches in float64."""

from dataclasses import dataclass

import torch
from torch import Tensor

_LEAST_VARIANCE = 1e-9  # of the inputs, as a share of their mean square


@dataclass(frozen=True)
class PatchOptions:
    """The kind of patch and the details of its regression."""

    kind: str  # bias, low_rank, full or folded
    rank: int = 32  # of low_rank
    ridge: float = 0.1  # lambda, as a multiple of the mean variance of the inputs
    centered: bool = True  # fit a bias too; a folded patch has one only if its linear layer has one
    weighting: str = "none"  # weight of a position: none, or norm for 1 / |Y|^2
    order: str = "auto"  # joint: fit on the full model's states; sequential: on states that the earlier patches have corrected

    @property
    def joint(self) -> bool:
        """True if patches are fitted on the full model's states; a folded patch is not, because its inputs are the view's."""
        return self.order == "joint" or (self.order == "auto" and self.kind != "folded")


@dataclass
class RidgeRegression:
    """Sums of a weighted regression of `d` on `x`, accumulated in float64."""

    gram: Tensor  # [inputs, inputs]
    cross: Tensor  # [inputs, outputs]
    x_sum: Tensor
    d_sum: Tensor
    weight: float = 0.0

    @classmethod
    def empty(cls, inputs: int, outputs: int) -> "RidgeRegression":
        """Start with no positions."""
        shapes = ((inputs, inputs), (inputs, outputs), (inputs,), (outputs,))
        gram, cross, x_sum, d_sum = (torch.zeros(shape, dtype=torch.float64) for shape in shapes)
        return cls(gram, cross, x_sum, d_sum)

    def add(self, x: Tensor, d: Tensor, weights: Tensor | None) -> None:
        """Add positions: `x` [count, inputs], `d` [count, outputs], `weights` [count]."""
        x, d = x.double().cpu(), d.double().cpu()
        weighted = x if weights is None else x * weights.double().cpu()[:, None]
        self.gram += weighted.T @ x
        self.cross += weighted.T @ d
        self.x_sum += weighted.sum(0)
        self.d_sum += (d if weights is None else d * weights.double().cpu()[:, None]).sum(0)
        self.weight += len(x) if weights is None else float(weights.sum())

    def solve(self, options: PatchOptions) -> dict[str, Tensor]:
        """Return `weight` [inputs, outputs] and `bias` [outputs] of `d = x weight + bias`, of rank `options.rank` if low_rank.

        The ridge is `options.ridge` times the mean of the Gram matrix's diagonal.
        """
        x_mean, d_mean = self.x_sum / self.weight, self.d_sum / self.weight
        if options.kind == "bias":
            return {"bias": d_mean}
        gram, cross = self.gram, self.cross
        if options.centered:
            gram = gram - self.weight * torch.outer(x_mean, x_mean)
            cross = cross - self.weight * torch.outer(x_mean, d_mean)
        least = _LEAST_VARIANCE * self.gram.diagonal().mean() + torch.finfo(torch.float64).tiny  # of inputs that do not vary
        scale = gram.diagonal().mean().clamp_min(least)
        weight = torch.linalg.solve(gram + options.ridge * scale * torch.eye(len(gram), dtype=gram.dtype), cross)
        parts = {"weight": weight}
        if options.kind == "low_rank":  # the best map of this rank for these inputs
            vectors = torch.linalg.eigh(weight.T @ gram @ weight)[1][:, -options.rank :]
            parts = {"down": weight @ vectors, "up": vectors.T}
            weight = parts["down"] @ parts["up"]
        return {**parts, "bias": d_mean - x_mean @ weight} if options.centered else parts
