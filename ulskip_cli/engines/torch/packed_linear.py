"""Linear layers whose packed weights, in huge pages, make decode steps faster on a CPU."""

import mmap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import psutil
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ulskip_cli.engines.torch import cpu_kernels
from ulskip_cli.inference import shallow_view

CHUNK_BYTES = 32 * 2**20
_ALIGNMENT = 64  # bytes; our kernels and those of torch.compile read whole vectors
MEMORY_SHARE = 0.25  # limit of the packed copies, as a share of the free memory
PANELS, ONEDNN, TORCH = "panels", "onednn", "torch"


@dataclass(frozen=True)
class LinearBackend:
    """The implementation of the matrix products in decode steps, for a model and all of its
    views.
    """

    name: str  # `panels` (kernels.cpp) or `onednn`, both with packed weights, or `torch`
    reason: str | None = None  # the reason why it is not `panels`


class PackedLinear(nn.Module):
    """A linear layer with a packed copy of the weight of an `nn.Linear` or `Conv1D`."""

    weight_packed: Tensor
    bias: Tensor | None

    def __init__(self, source: Any, by: str) -> None:
        super().__init__()
        weight = _weight(source).detach()
        self.out_features, self.by = weight.shape[0], by
        if by == PANELS:
            copied = _memory.copy(cpu_kernels.pack(weight))
        else:
            copied = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)
        self.register_buffer("weight_packed", copied, persistent=False)
        self.weight, self.bias = source.weight, source.bias  # for modules that read them

    def forward(self, hidden: Tensor) -> Tensor:
        """Multiply `hidden` [..., in_features] by the weight; return [..., out_features]."""
        packed, bias = self.weight_packed, self.bias
        product: Tensor = (
            torch.ops.ulskip.linear(hidden, packed, bias, self.out_features)
            if self.by == PANELS
            else torch.ops.mkldnn._linear_pointwise(hidden, packed, bias, "none", [], "")
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


_memory = HugePages()
# The packed copy of each layer and the version of its weight; all views of a model share the
# copies.
_copies: WeakKeyDictionary[nn.Module, tuple[int, PackedLinear]] = WeakKeyDictionary()
# The linear backend of each model, and the dtypes and devices of its weights at that time.
_chosen: WeakKeyDictionary[nn.Module, tuple[object, LinearBackend]] = WeakKeyDictionary()


def choose_linear_backend(
    model: PreTrainedModel, on_build: Callable[[], object] = lambda: None
) -> LinearBackend:
    """Choose the linear backend of a loaded model and all of its views.

    Later calls return the first choice, so that the full model and its schedules run on one
    backend. If the model can use the kernel, the first call calls `on_build` and compiles the
    kernel.
    """
    weights = [_weight(module) for module in model.modules() if _is_linear(module)]
    kinds = frozenset((weight.dtype, weight.device.type) for weight in weights)
    known = _chosen.get(model)
    if known is None or known[0] != kinds:
        known = _chosen[model] = (kinds, _choose(weights, on_build))
    return known[1]


def packed(view: PreTrainedModel, backend: str) -> PreTrainedModel:
    """Return a view whose linear layers are packed for the named backend; for `torch`, return
    `view` itself.

    With `panels`, its attention layers use the kernel for decode steps too, and rows do not depend
    on one another, except where `exact_tokens` says so.
    """
    if backend == TORCH:
        return view

    replaced: dict[nn.Module, nn.Module] = {}
    for module in view.modules():
        if backend == PANELS and type(module).__module__ in cpu_kernels.ACTIVATIONS:
            replaced[module] = cpu_kernels.RowWiseActivation(module)
        elif _is_linear(module):
            weight = _weight(module)
            version = 0 if weight.is_inference() else weight._version
            known = _copies.get(module)
            if known is None or known[0] != version or known[1].by != backend:
                known = _copies[module] = (version, PackedLinear(module, backend))
            replaced[module] = known[1]
    rebuilt = shallow_view.substituted(view, replaced)
    return cpu_kernels.with_decode_attention(rebuilt) if backend == PANELS else rebuilt


def exact_tokens(view: PreTrainedModel) -> int | None:
    """Return the most tokens of a sequence for which a pass over a packed view gives the logits of
    single steps bit for bit: 1 if the view multiplies without our kernels, e.g. in experts or in
    the attention of BLOOM. None with other backends, whose rounding depends on the number of
    tokens: their passes are not divided, and not exact.
    """
    if not any(type(part) is PackedLinear and part.by == PANELS for part in view.modules()):
        return None
    has_matrix = (
        any(weight.dim() > 1 for weight in part.parameters(recurse=False))
        for part in view.modules()
        if not isinstance(part, (PackedLinear, nn.Embedding))
    )
    uses_kernel = (
        cpu_kernels.is_attended(layer)
        for layer in shallow_view.decoder_layers(view)
        if shallow_view.layer_index(layer) is not None
    )
    return cpu_kernels.MAX_TOKENS if all(uses_kernel) and not any(has_matrix) else 1


def _choose(weights: list[Tensor], on_build: Callable[[], object]) -> LinearBackend:
    dtypes = {weight.dtype for weight in weights}
    if any(weight.device.type != "cpu" for weight in weights):
        return LinearBackend(TORCH, "the weights are not on the CPU")
    if len(dtypes) != 1 or not dtypes <= set(cpu_kernels.DTYPES):
        return LinearBackend(TORCH, "the weights are neither all float32 nor all bfloat16")
    needed = sum(weight.nbytes for weight in weights)
    if needed > MEMORY_SHARE * psutil.virtual_memory().available:
        return LinearBackend(
            TORCH,
            f"packed weights need {needed} bytes, more than {MEMORY_SHARE:.0%} of the free memory",
        )
    even = dtypes == {torch.float32} or all(weight.shape[1] % 2 == 0 for weight in weights)
    reason = (
        cpu_kernels.load_kernels(on_build)
        if even
        else "a bfloat16 layer has an odd number of inputs"
    )
    if reason is None:
        return LinearBackend(PANELS)
    onednn = torch._C._has_mkldnn and (
        dtypes == {torch.float32} or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )
    return LinearBackend(ONEDNN if onednn else TORCH, reason)


def _is_linear(module: nn.Module) -> bool:
    # Quantized layers have weights of other types, and their own kernels.
    return type(module) in shallow_view.LINEARS and type(module.weight) is nn.Parameter


def _weight(module: Any) -> Tensor:  # [out_features, in_features]
    weight: Tensor = module.weight
    return weight.t() if type(module) is Conv1D else weight
