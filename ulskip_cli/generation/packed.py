"""Weights laid out for the few rows of a decode step: what makes it fast on a CPU."""

from weakref import WeakKeyDictionary

import psutil
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ulskip_cli import views
from ulskip_cli.generation import kernel

MEMORY_SHARE = 0.25  # of what is free, that packed copies may take


class PackedLinear(nn.Module):
    """A linear layer whose weight is laid out anew, for our own product or for oneDNN's; the source keeps its own."""

    def __init__(self, source: nn.Module, by: str) -> None:
        """Copy the weight of a linear layer, or of GPT-2's transposed ones.

        Args:
            source: float32 or bfloat16, on the CPU.
            by: a name that `packer` returns.
        """
        super().__init__()
        weight = _weight(source).detach()
        self.out_features, self.by = weight.shape[0], by
        packing = kernel.pack if by == "panels" else _onednn
        self.register_buffer("weight_packed", packing(weight), persistent=False)
        self.weight, self.bias = source.weight, source.bias  # the source's own, for modules that look at them

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., in_features] to [..., out_features]."""
        packed, bias = self.weight_packed, self.bias
        assert isinstance(packed, Tensor)
        assert bias is None or isinstance(bias, Tensor)
        if self.by == "panels":
            return kernel.linear(hidden, packed, bias, self.out_features)
        product: Tensor = torch.ops.mkldnn._linear_pointwise(hidden, packed, bias, "none", [], "")
        return product


_copies: WeakKeyDictionary[nn.Module, tuple[int, PackedLinear]] = WeakKeyDictionary()
"""A layer's packed copy and the version of the weight it was made of; views of one model share them."""


def packed(view: PreTrainedModel) -> PreTrainedModel:
    """A view over packed copies of another's linear layers; the other itself where packing does not serve it.

    It serves float32 and bfloat16 on a CPU, as long as the copies take no more than a quarter of the free memory.
    """
    by = packer(view)
    if by is None:
        return view

    def replacement(module: nn.Module) -> nn.Module | None:
        if not _is_linear(module):
            return None
        version = _version(_weight(module))
        known = _copies.get(module)
        if known is None or known[0] != version or known[1].by != by:
            known = _copies[module] = (version, PackedLinear(module, by))
        return known[1]

    rebuilt = views.substituted(view, replacement)
    assert isinstance(rebuilt, PreTrainedModel)
    return rebuilt


def packer(view: PreTrainedModel) -> str | None:
    """Whose product serves a view on this machine: `panels` (ours), `onednn`, or none."""
    layers = {id(module): module for module in view.modules() if _is_linear(module)}.values()
    weights = [_weight(module) for module in layers]
    dtypes = {weight.dtype for weight in weights}
    if len(dtypes) != 1 or not dtypes <= set(kernel.DTYPES) or any(weight.device.type != "cpu" for weight in weights):
        return None
    needed = sum(_weight(module).nbytes for module in layers if module not in _copies)
    if needed > MEMORY_SHARE * psutil.virtual_memory().available:
        return None
    even = dtypes == {torch.float32} or all(weight.shape[1] % 2 == 0 for weight in weights)
    if even and kernel.why_not() is None:
        return "panels"
    onednn = torch._C._has_mkldnn and (dtypes == {torch.float32} or torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return "onednn" if onednn else None


def _is_linear(module: nn.Module) -> bool:
    """Whether a module is one with a plain weight; quantized ones have products of their own."""
    return type(module) in (nn.Linear, Conv1D) and type(module.weight) is nn.Parameter


def _weight(module: nn.Module) -> Tensor:
    """[out_features, in_features]."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.t() if type(module) is Conv1D else weight


def _onednn(weight: Tensor) -> Tensor:
    reordered: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)
    return reordered


def _version(weight: Tensor) -> int:
    return 0 if weight.is_inference() else weight._version
