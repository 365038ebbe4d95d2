"""The CPU kernels of decode steps: the library of kernels.cpp and the structures that it reads."""

import os
import shlex
import subprocess
from collections.abc import Callable
from ctypes import (
    CDLL,
    Structure,
    byref,
    c_bool,
    c_float,
    c_int32,
    c_int64,
    c_void_p,
)
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ulskip_cli.engines.torch import kernel_build

PANEL = 32  # outputs that are stored together
DTYPES = (torch.float32, torch.bfloat16)
MAX_TOKENS = 8  # of each sequence in one step; more tokens are a task for matrix products
_FLOAT32, _BFLOAT16, _EXACT_PAIRS = range(3)  # kinds of packed weights

_failures: dict[str, str] = {}  # reason by compile command, for builds that failed in this process
_loaded: list[CDLL] = []


class Norm(Structure):
    """The weight of an RMS norm, and its epsilon."""

    _fields_ = [("weight", c_void_p), ("eps", c_float)]


class Linear(Structure):
    """A linear layer with a packed weight."""

    _fields_ = [
        ("weights", c_void_p),
        ("bias", c_void_p),
        ("outputs", c_int64),
        ("units", c_int64),
        ("kind", c_int32),
    ]


class Layer(Structure):
    """A decoder layer with the KV cache of a batch."""

    _fields_ = [
        *((name, Norm) for name in ("input", "output", "query_norm", "key_norm")),
        *((name, Linear) for name in ("query", "key", "value", "out", "gate", "up", "down")),
        *((name, Linear) for name in ("before", "after")),
        *((name, c_void_p) for name in ("cos", "sin", "keys", "values")),
        ("head_dim", c_int64),
        ("window", c_int64),
        ("scale", c_float),
    ]


class Model(Structure):
    """A model without its layers."""

    _fields_ = [
        ("hidden", c_int64),
        ("vocab", c_int64),
        ("embedding", c_void_p),
        ("norm", Norm),
        ("head", Linear),
        ("screen", c_void_p),
        *((name, c_void_p) for name in ("scale", "error", "size")),
        ("quads", c_int64),
        ("rows", c_void_p),
    ]


class Batch(Structure):
    """The place of new tokens in the KV cache."""

    _fields_ = [
        ("size", c_int64),
        ("count", c_int64),
        ("length", c_int64),
        ("capacity", c_int64),
        ("padding", c_void_p),
    ]


class Choice(Structure):
    """The structure says where the most likely tokens are written, and which are not chosen."""

    _fields_ = [
        ("tokens", c_void_p),
        ("banned", c_void_p),
        ("num_banned", c_int64),
        ("left", c_void_p),
    ]


_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "ulskip_step": (
        None,
        [*[c_void_p] * 2, c_int64, *[c_void_p] * 5, c_bool, c_int32],
    ),
    "ulskip_linear": (None, [*[c_void_p] * 3, c_int64, c_int64, c_bool, c_int32]),
    "ulskip_screens": (c_bool, []),
}


def build_failure() -> str | None:
    """Return the reason why this process cannot build the kernels or failed to build or load them,
    or None.
    """
    compiler = kernel_build.compiler()
    return _failures.get(shlex.join(compiler)) if compiler else "no C++ compiler"


def load_kernels(on_build: Callable[[], object] = lambda: None) -> str | None:
    """Load the kernels once per process; return None, or the reason why they cannot be used.

    The first call on a machine calls `on_build` and compiles for some seconds. A failed build is
    not repeated.
    """
    if os.environ.get("ULSKIP_KERNEL") == "off":
        return "ULSKIP_KERNEL=off"
    if _loaded:
        return None
    if failure := build_failure():
        return failure
    compiler = kernel_build.compiler()
    try:
        if not kernel_build.library(compiler).is_file():
            on_build()
        library = CDLL(str(kernel_build.build(compiler)))
    except (OSError, subprocess.CalledProcessError) as error:
        text = getattr(error, "stderr", "") or str(error)
        _failures[shlex.join(compiler)] = f"{compiler[0]} failed: {' '.join(text.split())[:160]}"
        return build_failure()
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    _loaded.append(library)
    return None


def library() -> Any:
    """Return the loaded library."""
    return _loaded[0]


def pack(weight: Tensor) -> tuple[Tensor, int]:
    """Pack a weight [out_features, in_features] into panels [panels, units, 32, unit_size], padded
    with zeros; return them and their kind.

    Float32 weights that bfloat16 represents exactly, as in checkpoints that were saved in it, are
    stored so: a step reads half of the bytes and computes the same bits. In bfloat16, in_features
    must be even.
    """
    weight, kind = weight.detach(), _BFLOAT16
    if weight.dtype == torch.float32:
        halves, kind = weight.bfloat16(), _FLOAT32
        if weight.shape[1] % 2 == 0 and torch.equal(halves.float(), weight):
            weight, kind = halves, _EXACT_PAIRS
    return panels(weight, 4 // weight.element_size()), kind


def panels(rows: Tensor, unit: int) -> Tensor:
    """Store the rows [outputs, inputs] in panels of 32, [panels, units, 32, unit]."""
    outputs, inputs = rows.shape
    count = -(-outputs // PANEL)
    filled = functional.pad(rows, (0, -inputs % unit, 0, count * PANEL - outputs))
    return filled.view(count, PANEL, -1, unit).transpose(1, 2).contiguous()


def linear(packed: Tensor, kind: int, bias: Tensor | None, outputs: int) -> Linear:
    """Return the structure of a packed linear layer; it does not keep the tensors alive."""
    bias_at = None if bias is None else bias.data_ptr()
    return Linear(packed.data_ptr(), bias_at, outputs, packed.shape[1], kind)


def multiply(layer: Linear, hidden: Tensor) -> Tensor:
    """Return the product [..., outputs] of `hidden` [..., inputs] and a linear layer."""
    rows = hidden.contiguous()
    product = hidden.new_empty((*hidden.shape[:-1], layer.outputs))
    inputs = hidden.shape[-1]
    library().ulskip_linear(
        byref(layer),
        rows.data_ptr(),
        product.data_ptr(),
        rows.numel() // inputs,
        inputs,
        hidden.dtype == torch.float32,
        torch.get_num_threads(),
    )
    return product
