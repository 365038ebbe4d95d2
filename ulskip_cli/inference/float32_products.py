"""Matrix products in float32 for models whose type the CPU has no instructions for."""

import functools
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree
from transformers import PreTrainedModel

FEW_TOKENS = 8  # of a sequence; for so few, reading the weights takes longer than multiplying
# Flags of processors, in /proc/cpuinfo, that compute in a type.
_INSTRUCTIONS = {
    torch.bfloat16: {"avx512_bf16", "amx_bf16", "bf16"},
    torch.float16: {"avx512_fp16", "amx_fp16", "asimdhp"},
}
_PRODUCTS = (functional.linear, functional.scaled_dot_product_attention, torch.addmm)


def float32_products(model: PreTrainedModel, num_tokens: int) -> AbstractContextManager[object]:
    """Return a context in which a pass over `num_tokens` of each sequence multiplies in float32 and
    rounds the products, if the CPU has no instructions for the type of the weights.

    Torch's own products are several times slower there; theirs are rounded after sums in float32,
    too, so that only the order of summation differs.
    """
    if num_tokens <= FEW_TOKENS or model.device.type != "cpu" or not _is_slow(model.dtype):
        return nullcontext()
    return _Float32Products()


class _Float32Products(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: object, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func not in _PRODUCTS or any(type(part) not in (Tensor, nn.Parameter) for part in args):
            return func(*args, **kwargs or {})
        dtype = args[0].dtype
        args, kwargs = _pytree.tree_map_only(Tensor, _widened, (args, kwargs or {}))
        return func(*args, **kwargs).to(dtype)


def _widened(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in _INSTRUCTIONS else tensor


def _is_slow(dtype: torch.dtype) -> bool:
    flags = _processor_flags()
    return dtype in _INSTRUCTIONS and bool(flags) and not _INSTRUCTIONS[dtype] & flags


@functools.cache
def _processor_flags() -> frozenset[str]:
    """Return the flags of the processor; none if the system has no list of them."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return frozenset()
    lines = [line for line in text.lower().split("\n") if line.startswith(("flags", "features"))]
    return frozenset(lines[0].split()) if lines else frozenset()
