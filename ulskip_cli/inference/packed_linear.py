"""Linear layers with weights packed for the few rows of a decode step, which makes decoding faster on a CPU."""

from collections.abc import Callable
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import psutil
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ulskip_cli.inference import linear_kernel, shallow_view

MEMORY_SHARE = 0.25  # of the free memory, the limit for packed copies
PANELS, ONEDNN, TORCH = "panels", "onednn", "torch"


@dataclass(frozen=True)
class LinearBackend:
    """The matrix product that a model and all of its views decode with."""

    name: str  # `panels` (our kernel), `onednn` (oneDNN's), both over packed weights, or `torch`
    reason: str | None = None  # why it is not `panels`


class PackedLinear(nn.Module):
    """A linear layer with a packed copy of the weight of an `nn.Linear` or `Conv1D`, in float32 or bfloat16 on the CPU."""

    def __init__(self, source: nn.Module, by: str) -> None:
        super().__init__()
        weight = _weight(source).detach()
        self.out_features, self.by = weight.shape[0], by
        if by == PANELS:
            copied = linear_kernel.pack(weight)
        else:
            copied = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)
        self.register_buffer("weight_packed", copied, persistent=False)
        self.weight, self.bias = source.weight, source.bias  # the source's own, for modules that read them

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., in_features] to [..., out_features]."""
        packed, bias = self.weight_packed, self.bias
        assert isinstance(packed, Tensor)
        assert bias is None or isinstance(bias, Tensor)
        if self.by == PANELS:
            return linear_kernel.linear(hidden, packed, bias, self.out_features)
        product: Tensor = torch.ops.mkldnn._linear_pointwise(hidden, packed, bias, "none", [], "")
        return product


# The packed copy of each layer with the version of its weight; all views of a model share the copies.
_copies: WeakKeyDictionary[nn.Module, tuple[int, PackedLinear]] = WeakKeyDictionary()
# The linear backend of each model, with the dtypes and devices of the weights for which it was chosen.
_chosen: WeakKeyDictionary[nn.Module, tuple[object, LinearBackend]] = WeakKeyDictionary()


def choose_linear_backend(model: PreTrainedModel, on_build: Callable[[], object] = lambda: None) -> LinearBackend:
    """Choose the linear backend of a loaded model and of all of its views, once.

    The choice depends on the memory that is free at the first call. Later calls return the same, so that the full model and its
    schedules always run on one backend. The first call compiles the kernel if it would serve this model, after `on_build`.
    """
    layers = {id(module): module for module in model.modules() if _is_linear(module)}.values()
    weights = [_weight(module) for module in layers]
    kinds = frozenset((weight.dtype, weight.device.type) for weight in weights)
    known = _chosen.get(model)
    if known is None or known[0] != kinds:
        known = _chosen[model] = (kinds, _choose(weights, on_build))
    return known[1]


def packed(view: PreTrainedModel, backend: str) -> PreTrainedModel:
    """Build a view over packed copies of another view's linear layers, for the name of a backend; `torch` returns the view."""
    if backend == TORCH:
        return view

    def replacement(module: nn.Module) -> nn.Module | None:
        if not _is_linear(module):
            return None
        weight = _weight(module)
        version = 0 if weight.is_inference() else weight._version
        known = _copies.get(module)
        if known is None or known[0] != version or known[1].by != backend:
            known = _copies[module] = (version, PackedLinear(module, backend))
        return known[1]

    rebuilt = shallow_view.substituted(view, replacement)
    assert isinstance(rebuilt, PreTrainedModel)
    return rebuilt


def linear_backend_of(model: nn.Module) -> str:
    """Return the name of the linear backend that a model runs on, read from its layers."""
    return next((module.by for module in model.modules() if type(module) is PackedLinear), TORCH)


def _choose(weights: list[Tensor], on_build: Callable[[], object]) -> LinearBackend:
    dtypes = {weight.dtype for weight in weights}
    if any(weight.device.type != "cpu" for weight in weights):
        return LinearBackend(TORCH, "weights that are not on the CPU")
    if len(dtypes) != 1 or not dtypes <= set(linear_kernel.DTYPES):
        return LinearBackend(TORCH, "weights that are not all float32 or all bfloat16")
    needed = sum(weight.nbytes for weight in weights)
    if needed > MEMORY_SHARE * psutil.virtual_memory().available:
        return LinearBackend(TORCH, f"packed copies of {needed} bytes, more than {MEMORY_SHARE:.0%} of the free memory")
    even = dtypes == {torch.float32} or all(weight.shape[1] % 2 == 0 for weight in weights)
    reason = linear_kernel.load(on_build) if even else "an odd number of inputs in bfloat16"
    if reason is None:
        return LinearBackend(PANELS)
    onednn = torch._C._has_mkldnn and (dtypes == {torch.float32} or torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return LinearBackend(ONEDNN if onednn else TORCH, reason)


def _is_linear(module: nn.Module) -> bool:
    """Return True for a linear layer with a plain weight; quantized layers have kernels of their own."""
    return type(module) in (nn.Linear, Conv1D) and type(module.weight) is nn.Parameter


def _weight(module: nn.Module) -> Tensor:
    """Return the weight as [out_features, in_features]."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.t() if type(module) is Conv1D else weight
