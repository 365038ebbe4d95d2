"""The CPU kernels of decode steps, a matrix product for few rows and attention of one token,
compiled once on each machine.
"""

import copy
import inspect
import os
import shlex
import subprocess
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from ulskip_cli.engines.torch import kernel_build
from ulskip_cli.inference import shallow_view

PANEL = 32  # outputs in a panel, as in kernels.cpp
DTYPES = (torch.float32, torch.bfloat16)

_failures: dict[str, str] = {}  # reason by compile command, for builds that failed in this process


def build_failure() -> str | None:
    """Return the reason why this process cannot build the kernels or failed to build or load them,
    or None.
    """
    compiler = kernel_build.compiler()
    return _failures.get(shlex.join(compiler)) if compiler else "no C++ compiler"


def is_loaded() -> bool:
    """Return True if the kernels are loaded."""
    return hasattr(torch.ops.ulskip, "linear")


def load_kernels(on_build: Callable[[], object] = lambda: None) -> str | None:
    """Load the kernels once per process; return None, or the reason why they cannot be used.

    The first call on a machine calls `on_build` and compiles for about half a minute. A failed
    build is not repeated.
    """
    if os.environ.get("ULSKIP_KERNEL") == "off":
        return "ULSKIP_KERNEL=off"
    if is_loaded():
        return None
    if failure := build_failure():
        return failure
    compiler = kernel_build.compiler()
    try:
        if not kernel_build.library(compiler).is_file():
            on_build()
        torch.ops.load_library(kernel_build.build(compiler))  # type: ignore[no-untyped-call]
    except (OSError, subprocess.CalledProcessError) as error:
        text = getattr(error, "stderr", "") or str(error)
        _failures[shlex.join(compiler)] = f"{compiler[0]} failed: {' '.join(text.split())[:160]}"
        return build_failure()
    fake = torch.library.register_fake
    fake("ulskip::linear", _empty_product)
    fake(
        "ulskip::linears",
        lambda hidden, packed, biases, sizes: [
            _empty_product(hidden, None, None, size) for size in sizes
        ],
    )
    fake("ulskip::attention", lambda query, *_: query.new_empty(query.transpose(1, 2).shape))
    return None


def pack(weight: Tensor) -> Tensor:
    """Pack a weight [out_features, in_features] into panels [panels, units, 32, unit_size], padded
    with zeros. Weights of `torch.ops.ulskip.linear` are packed, on the CPU, in float32, or in
    bfloat16 with an even in_features.
    """
    outputs, inputs = weight.shape
    unit = 4 // weight.element_size()
    panels = -(-outputs // PANEL)
    filled = torch.nn.functional.pad(
        weight.detach(), (0, -inputs % unit, 0, panels * PANEL - outputs)
    )
    return filled.view(panels, PANEL, -1, unit).transpose(1, 2).contiguous()


def _empty_product(hidden: Tensor, packed: object, bias: object, out_features: int) -> Tensor:
    return hidden.new_empty((*hidden.shape[:-1], out_features))


NAME = "ulskip_decode"
MAX_TOKENS = 8  # of a sequence in one pass: the rows that kernels.cpp multiplies at once
# Torch computes elements behind the last whole vectors, and at the borders of threads, with other
# instructions, so that their bits depend on the number of rows.
VECTOR, SERIAL = 64, 1 << 14  # elements: of whole vectors on any CPU, and of one thread
ACTIVATIONS = ("transformers.activations", "torch.nn.modules.activation")  # Python modules
_CHANGES_SCORES = ("softcap", "position_bias", "s_aux")  # options that the kernel lacks


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attend with our kernel if there are few queries per sequence and it supports the call, else
    with torch's `scaled_dot_product_attention`.

    `query` is [batch, heads, queries, head_dim], `key` and `value` [batch, kv_heads, length,
    head_dim], which query heads share in equal groups. The mask is additive and broadcasts to
    [batch, heads, queries, length]. The result is [batch, queries, heads, head_dim].
    """
    tensors = (query, key, value) if attention_mask is None else (query, key, value, attention_mask)
    fits = (
        # without a mask, torch hides later tokens from several queries, and the kernel none
        (query.shape[2] == 1 or (attention_mask is not None and query.shape[2] <= MAX_TOKENS))
        and key.shape == value.shape
        and query.dtype in DTYPES
        and all(tensor.dtype == query.dtype for tensor in tensors)
        and not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors))
        and not options.get("dropout")
        and all(options.get(name) is None for name in _CHANGES_SCORES)
    )
    if not fits:
        attended: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **options
        )
        return attended
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return torch.ops.ulskip.attention(query, key, value, attention_mask, scale), None


AttentionInterface.register(NAME, attend)


def is_attended(layer: nn.Module) -> bool:
    """Return True if the attention of a decoder layer uses the kernel for all passes."""
    configs = (part.__dict__.get("config") for part in layer.modules())
    return any(
        getattr(config, "_attn_implementation", None) == NAME
        and getattr(config, "v_head_dim", None) is None  # values of another width than keys
        for config in configs
    )


class RowWiseActivation(nn.Module):
    """An activation in which no row of `hidden` [..., width] depends on the others."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, hidden: Tensor) -> Tensor:
        """Apply the activation to so few elements at once that torch computes all alike."""
        width = hidden.shape[-1]
        rows = max(1, SERIAL // width) if width % VECTOR == 0 else 1
        if hidden.numel() <= rows * width:
            result: Tensor = self.activation(hidden)
            return result
        parts = torch.split(hidden.reshape(-1, width), rows)
        return torch.cat([self.activation(part) for part in parts]).view(hidden.shape)


def with_decode_attention(view: PreTrainedModel) -> PreTrainedModel:
    """Return a copy of a view whose attention layers use the kernel where they used `sdpa`; the
    kernel must be loaded.
    """
    # The copy of each config, by id, because modules share configs.
    configs: dict[int, PreTrainedConfig] = {}

    def change(module: nn.Module) -> dict[str, object]:
        """Return the attributes of a module that differ in the copy."""
        config = vars(module).get("config")
        uses_sdpa = getattr(config, "_attn_implementation", None) == "sdpa"
        # models keep their config, because they make masks for `sdpa`
        if not uses_sdpa or isinstance(module, PreTrainedModel):
            return {}
        code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
        if code and "sdpa" in code.co_consts:  # Falcon's attention compares the name itself
            return {}
        if id(config) not in configs:
            configs[id(config)] = copy.deepcopy(config)
            configs[id(config)]._attn_implementation = NAME
        return {"config": configs[id(config)]}

    return shallow_view.with_attributes(view, change)
