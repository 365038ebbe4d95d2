"""Weights laid out for the processor's matrix units: what makes a decode step in bfloat16 fast on a CPU."""

import psutil
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ulskip_cli import views

MEMORY_SHARE = 0.25  # of what is free, that packed copies may take


class PackedLinear(nn.Module):
    """A linear layer whose weight oneDNN has reordered; a copy, the source keeps its own."""

    def __init__(self, source: nn.Linear) -> None:
        """Reorder the weight of a bfloat16 layer, [out_features, in_features]."""
        super().__init__()
        self.weight_packed = torch.ops.mkldnn._reorder_linear_weight(source.weight.detach(), None)
        self.bias = source.bias

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., in_features] to [..., out_features]."""
        packed: Tensor = torch.ops.mkldnn._linear_pointwise(hidden, self.weight_packed, self.bias, "none", [], "")
        return packed


def packed(view: PreTrainedModel) -> PreTrainedModel:
    """A view over packed copies of another's linear layers; the other itself where packing does not serve it.

    It serves bfloat16 on a CPU with oneDNN, as long as the copies take no more than a quarter of the free memory.
    """
    if not can_pack(view):
        return view
    copies: dict[int, PackedLinear] = {}  # a tied or repeated layer is packed once

    def replacement(module: nn.Module) -> nn.Module | None:
        if type(module) is not nn.Linear:
            return None
        return copies.setdefault(id(module), PackedLinear(module))

    rebuilt = views.substituted(view, replacement)
    assert isinstance(rebuilt, PreTrainedModel)
    return rebuilt


def can_pack(view: PreTrainedModel) -> bool:
    """Whether packed copies serve a view on this machine."""
    linears = {id(module): module for module in view.modules() if type(module) is nn.Linear}.values()
    if not linears or any(module.weight.device.type != "cpu" or module.weight.dtype != torch.bfloat16 for module in linears):
        return False
    if not torch._C._has_mkldnn or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    needed = sum(module.weight.numel() * module.weight.element_size() for module in linears)
    return needed <= MEMORY_SHARE * psutil.virtual_memory().available
