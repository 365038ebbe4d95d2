"""The implementation of decode steps for a model, chosen once."""

from collections.abc import Callable
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import psutil
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ulskip_cli.engines.torch import kernels
from ulskip_cli.engines.torch.native_model import unrecognized_reason
from ulskip_cli.engines.torch.packed_linear import (
    ONEDNN,
    PANELS,
    TORCH,
    is_linear,
    linear_weight,
)

NATIVE = "native"
MEMORY_SHARE = 0.25  # limit of the packed copies, as a share of the free memory


@dataclass(frozen=True)
class Backend:
    """The implementation of the decode steps of a model and all of its views."""

    # `native` (one call a step) or `panels` (packed linear layers), both kernels.cpp; `onednn`
    # (packed, too) or `torch`
    name: str
    reason: str | None = None  # why it is not `native` on a CPU


# The backend of each model, and the dtypes and devices of its weights at that time.
_chosen: WeakKeyDictionary[nn.Module, tuple[object, Backend]] = WeakKeyDictionary()


def choose_backend(
    model: PreTrainedModel, on_build: Callable[[], object] = lambda: None
) -> Backend:
    """Choose the backend of a loaded model and all of its views.

    Later calls return the first choice, so that the full model and its schedules run on one
    backend. If the model can use the kernels, the first call calls `on_build` and compiles them.
    """
    weights = [linear_weight(module) for module in model.modules() if is_linear(module)]
    kinds = frozenset((weight.dtype, weight.device.type) for weight in weights)
    known = _chosen.get(model)
    if known is None or known[0] != kinds:
        known = _chosen[model] = (kinds, _choose(model, weights, on_build))
    return known[1]


def _choose(
    model: PreTrainedModel, weights: list[Tensor], on_build: Callable[[], object]
) -> Backend:
    dtypes = {weight.dtype for weight in weights}
    if any(weight.device.type != "cpu" for weight in weights):
        return Backend(TORCH)
    if len(dtypes) != 1 or not dtypes <= set(kernels.DTYPES):
        return Backend(TORCH, "the weights are neither all float32 nor all bfloat16")
    needed = sum(weight.nbytes for weight in weights)
    if needed > MEMORY_SHARE * psutil.virtual_memory().available:
        return Backend(
            TORCH,
            f"packed weights need {needed} bytes, more than {MEMORY_SHARE:.0%} of the free memory",
        )
    even = dtypes == {torch.float32} or all(weight.shape[1] % 2 == 0 for weight in weights)
    reason = (
        kernels.load_kernels(on_build) if even else "a bfloat16 layer has an odd number of inputs"
    )
    if reason is None:
        unrecognized = unrecognized_reason(model)
        return Backend(PANELS, unrecognized) if unrecognized else Backend(NATIVE)
    onednn = torch._C._has_mkldnn and (
        dtypes == {torch.float32} or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )
    return Backend(ONEDNN if onednn else TORCH, reason)
