"""Matrix products in float32 for models whose type the CPU has no instructions for."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree
from transformers import PreTrainedModel

from ulskip_cli.core.environment import cpu_flags

FEW_TOKENS = 8  # of a sequence; for so few, reading the weights takes longer than multiplying
# Flags of processors that compute in a type.
_INSTRUCTIONS = {
    torch.bfloat16: {"avx512_bf16", "amx_bf16", "bf16"},
    torch.float16: {"avx512_fp16", "amx_fp16", "asimdhp"},
}
# The index of the hidden states among the arguments of each product.
_PRODUCTS: dict[object, int] = {
    functional.linear: 0,
    functional.scaled_dot_product_attention: 0,
    torch.addmm: 1,
}


def float32_products(model: PreTrainedModel, num_tokens: int) -> AbstractContextManager[object]:
    """Return a context in which a pass over `num_tokens` of each sequence multiplies in float32 and
    rounds the products, if the CPU has no instructions for the type of the weights.

    Torch's own products, several times slower there, are sums in float32 too, so that only the
    order of summation differs.
    """
    required = _INSTRUCTIONS.get(model.dtype)
    flags = set(cpu_flags().split())  # empty if the system lists none
    if required is None or not flags or flags & required:
        return nullcontext()
    if num_tokens <= FEW_TOKENS or model.device.type != "cpu":
        return nullcontext()
    return _Float32Products()


class _Float32Products(TorchFunctionMode):
    """While this mode is active, torch calls its method in place of each of torch's functions."""

    def __torch_function__(
        self, func: Any, types: object, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Compute a function of `_PRODUCTS` in float32, if it has many rows, and round its result
        to the type of its first argument; call all other functions unchanged.
        """
        options = kwargs or {}
        index = _PRODUCTS.get(func)
        if index is None or index >= len(args) or args[index].shape[-2] <= FEW_TOKENS:
            return func(*args, **options)
        dtype = args[0].dtype
        args, options = _pytree.tree_map_only(Tensor, _widened, (args, options))
        return func(*args, **options).to(dtype)


def _widened(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in _INSTRUCTIONS else tensor
