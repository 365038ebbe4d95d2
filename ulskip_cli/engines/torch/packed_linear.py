"""Packed weights of linear layers, in huge pages, with which decode steps are faster on a CPU."""

import mmap
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ulskip_cli.engines.torch import kernels
from ulskip_cli.inference import shallow_view

CHUNK_BYTES = 32 * 2**20
_ALIGNMENT = 64  # bytes; the kernels read whole vectors
PANELS, ONEDNN, TORCH = "panels", "onednn", "torch"


@dataclass(frozen=True)
class PackedWeight:
    """The weight of a linear layer in the panels of the kernels."""

    panels: Tensor
    kind: int

    def linear(self, bias: Tensor | None, outputs: int) -> kernels.Linear:
        """Return the structure that kernels read; it does not keep the tensors alive."""
        return kernels.linear(self.panels, self.kind, bias, outputs)


class PackedLinear(nn.Module):
    """A linear layer with a packed copy of the weight of an `nn.Linear` or `Conv1D`."""

    def __init__(self, source: Any, by: str) -> None:
        super().__init__()
        self.by, self.out_features = by, linear_weight(source).shape[0]
        self.weight, self.bias = source.weight, source.bias  # for modules that read them
        if by == PANELS:
            self._packed = packed_weight(source)
            self._linear = self._packed.linear(source.bias, self.out_features)
        else:
            weight = linear_weight(source).detach().contiguous()
            self._packed = torch.ops.mkldnn._reorder_linear_weight(weight, None)

    def forward(self, hidden: Tensor) -> Tensor:
        """Multiply `hidden` [..., in_features] by the weight; return [..., out_features]."""
        if self.by == PANELS:
            return kernels.multiply(self._linear, hidden)
        product: Tensor = torch.ops.mkldnn._linear_pointwise(
            hidden, self._packed, self.bias, "none", [], ""
        )
        return product


class HugePages:
    """Copies of tensors, stored one after the other in chunks of memory that the kernel may map
    with huge pages.

    With pages of 4 kB, a processor's prefetching stops at every page, and a decode step spends its
    time on address translation. A chunk is freed with the last tensor in it.
    """

    def __init__(self, chunk_bytes: int = CHUNK_BYTES) -> None:
        self._chunk_bytes = chunk_bytes
        self._chunk = torch.empty(0, dtype=torch.uint8)
        self._used = 0

    def copy(self, tensor: Tensor) -> Tensor:
        """Return a contiguous copy of a CPU tensor in this memory."""
        if tensor.nbytes > self._chunk_bytes:
            return _typed(_allocate(tensor.nbytes), tensor)
        if self._used + tensor.nbytes > len(self._chunk):
            self._chunk, self._used = _allocate(self._chunk_bytes), 0
        held = _typed(self._chunk[self._used : self._used + tensor.nbytes], tensor)
        self._used += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
        return held


def _typed(held: Tensor, tensor: Tensor) -> Tensor:
    return held.view(tensor.dtype).view(tensor.shape).copy_(tensor)


def _allocate(size: int) -> Tensor:
    try:
        # by default it would be shared
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory.madvise(mmap.MADV_HUGEPAGE)
    except (AttributeError, OSError):  # another system than Linux, or a kernel without huge pages
        return torch.empty(size, dtype=torch.uint8)
    return torch.frombuffer(memory, dtype=torch.uint8)


HUGE_PAGES = HugePages()
# The packed copy of each layer and the version of its weight; all views of a model share them.
_weights: WeakKeyDictionary[nn.Module, tuple[int, PackedWeight]] = WeakKeyDictionary()
_layers: WeakKeyDictionary[nn.Module, tuple[int, PackedLinear]] = WeakKeyDictionary()


def packed(view: PreTrainedModel, backend: str) -> PreTrainedModel:
    """Return a view whose linear layers are packed for the named backend; for `torch`, return
    `view` itself.
    """
    if backend == TORCH:
        return view
    replaced: dict[nn.Module, nn.Module] = {}
    for module in filter(is_linear, view.modules()):
        version, known = weight_version(module), _layers.get(module)
        if known is None or known[0] != version or known[1].by != backend:
            known = _layers[module] = (version, PackedLinear(module, backend))
        replaced[module] = known[1]
    return shallow_view.substituted(view, replaced)


def packed_weight(module: nn.Module) -> PackedWeight:
    """Return the weight of a linear layer in panels; the copy is made once."""
    version, known = weight_version(module), _weights.get(module)
    if known is None or known[0] != version:
        packed, kind = kernels.pack(linear_weight(module))
        known = _weights[module] = (version, PackedWeight(HUGE_PAGES.copy(packed), kind))
    return known[1]


def is_linear(module: nn.Module) -> bool:
    """Return True if a module is a linear layer whose weight is not quantized."""
    return type(module) in shallow_view.LINEARS and type(module.weight) is nn.Parameter


def linear_weight(module: Any) -> Tensor:
    """Return the weight [out_features, in_features] of a linear layer."""
    weight: Tensor = module.weight
    return weight.t() if type(module) is Conv1D else weight


def weight_version(module: Any) -> int:
    """Return a number that changes when the weight of a module is written."""
    return 0 if module.weight.is_inference() else module.weight._version
