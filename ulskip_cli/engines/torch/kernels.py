"""The CPU kernels of decode steps: the library of kernels.cpp, which is compiled once on each
machine, the structures that it reads, and the packed weights of linear layers.
"""

import mmap
import os
import platform
import shlex
import subprocess
from collections.abc import Callable, Sequence
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ulskip_cli.core.environment import cpu_flags
from ulskip_cli.core.files import cache_dir, replacing
from ulskip_cli.core.fingerprint import digest
from ulskip_cli.engines.torch import compiler
from ulskip_cli.inference import shallow_view

SOURCE = Path(__file__).with_name("kernels.cpp")
PANEL = 32  # outputs that are stored together
CHUNK_BYTES = 32 * 2**20
_FLAGS = ("-O3", "-march=native", "-fopenmp", "-shared", "-fPIC", "-std=c++20")
_ALIGNMENT = 64  # bytes; the kernels read whole vectors
CopyT = TypeVar("CopyT")
DTYPES = (torch.float32, torch.bfloat16)
GROUP = 32  # inputs whose 4-bit weights have one scale
_GROUP_BYTES = PANEL * (GROUP // 2 + 2)  # of a panel: two weights a byte, and scales in bfloat16
_FLOAT32, _BFLOAT16, _EXACT_PAIRS, _FOUR_BITS = range(4)  # kinds of packed weights

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
        *((name, Norm) for name in ("attention_norm", "mlp_norm", "query_norm", "key_norm")),
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
        ("byte_head", c_void_p),
        *((name, c_void_p) for name in ("byte_scales", "error_bounds", "norm_bounds")),
        ("quads", c_int64),
        ("head_rows", c_void_p),
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


class ChosenTokens(Structure):
    """The structure says where the most likely tokens are written, and which are not chosen."""

    _fields_ = [
        ("tokens", c_void_p),
        ("banned", c_void_p),
        ("num_banned", c_int64),
        ("exact_rows", c_void_p),
    ]


# By function of the library: the types of its result and of its arguments.
_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "ulskip_step": (
        None,
        [*[c_void_p] * 2, c_int64, *[c_void_p] * 5, c_bool, c_int32],
    ),
    "ulskip_linear": (None, [*[c_void_p] * 3, c_int64, c_int64, c_bool, c_int32]),
    "ulskip_pack": (None, [*[c_void_p] * 2, c_int64, c_int64, c_bool, c_int32]),
    "ulskip_has_byte_products": (c_bool, []),
}


def library_path(command: Sequence[str]) -> Path:
    """Return the path in the cache of the library that a compiler builds for this processor; other
    sources, commands and processors have other paths.
    """
    processor = cpu_flags() or platform.machine() + platform.processor()
    name = digest(SOURCE.read_text("utf-8"), command, _FLAGS, processor)
    return cache_dir() / "kernels" / f"{name}.so"


def build_failure() -> str | None:
    """Return the reason why this process cannot build the kernels or failed to build or load them,
    or None.
    """
    if os.environ.get("ULSKIP_KERNEL") == "off":
        return "ULSKIP_KERNEL=off"
    command = compiler()
    return _failures.get(shlex.join(command)) if command else "no C++ compiler"


def load_kernels(on_build: Callable[[], object] = lambda: None) -> str | None:
    """Load the kernels once per process; return None, or the reason why they cannot be used.

    The first call on a machine calls `on_build` and compiles for some seconds. A failed build is
    not repeated.
    """
    if failure := build_failure():
        return failure
    if _loaded:
        return None
    command = compiler()
    path = library_path(command)
    try:
        if not path.is_file():
            on_build()
            with replacing(path) as made:
                words = [*command, *_FLAGS, str(SOURCE), "-o", str(made)]
                subprocess.run(words, check=True, capture_output=True, text=True)
        library = CDLL(str(path))
    except (OSError, subprocess.CalledProcessError) as error:
        text = getattr(error, "stderr", "") or str(error)
        _failures[shlex.join(command)] = f"{command[0]} failed: {' '.join(text.split())[:160]}"
        return build_failure()
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    _loaded.append(library)
    return None


def library() -> Any:
    """Return the loaded library."""
    return _loaded[0]


@dataclass(frozen=True)
class PackedWeight:
    """The weight of a linear layer in panels."""

    panels: Tensor  # [panels, units, 32, unit_size], in 4 bits [panels, groups, bytes]
    kind: int  # how the kernels read a unit: `_FLOAT32`, `_BFLOAT16`, `_EXACT_PAIRS`, `_FOUR_BITS`
    outputs: int  # without those that fill the last panel

    def linear(self, bias: Tensor | None) -> Linear:
        """Return the structure that the kernels read; it does not keep the tensors alive."""
        bias_at = None if bias is None else bias.data_ptr()
        return Linear(
            self.panels.data_ptr(), bias_at, self.outputs, self.panels.shape[1], self.kind
        )


def pack(weight: Tensor) -> PackedWeight:
    """Pack a weight [out_features, in_features] into panels, padded with zeros.

    Float32 weights that bfloat16 represents exactly, as in checkpoints that were saved in it, are
    stored so: a step reads half of the bytes and computes the same bits. In bfloat16, in_features
    must be even.
    """
    weight, kind = weight.detach(), _BFLOAT16
    if weight.dtype == torch.float32:
        halves, kind = weight.bfloat16(), _FLOAT32
        if weight.shape[1] % 2 == 0 and torch.equal(halves.float(), weight):
            weight, kind = halves, _EXACT_PAIRS
    packed = HUGE_PAGES.copy(panels(weight, 4 // weight.element_size()))
    return PackedWeight(packed, kind, len(weight))


def pack_in_four_bits(weight: Tensor) -> PackedWeight:
    """Pack a weight [out_features, in_features], float32 or bfloat16, into panels with 4 bits a
    weight and a scale for each group of 32 inputs of a row, 0.56 bytes a weight.

    A group's scale is the one of 13 with the least squared error; it is NaN if a weight is not
    finite. Products round their inputs to 8 bits in the same groups. Raise NotImplementedError on
    a processor for which `library().ulskip_has_byte_products()` is false.
    """
    if not library().ulskip_has_byte_products():
        raise NotImplementedError("products with 4-bit weights need a processor with AVX2")
    rows = weight.detach().contiguous()
    outputs, inputs = rows.shape
    packed = torch.empty(-(-outputs // PANEL), -(-inputs // GROUP), _GROUP_BYTES, dtype=torch.uint8)
    library().ulskip_pack(
        rows.data_ptr(),
        packed.data_ptr(),
        outputs,
        inputs,
        rows.dtype == torch.float32,
        torch.get_num_threads(),
    )
    return PackedWeight(HUGE_PAGES.copy(packed), _FOUR_BITS, outputs)


def panels(rows: Tensor, unit: int) -> Tensor:
    """Store the rows [outputs, inputs] in panels of 32, [panels, units, 32, unit], where `unit`
    adjacent inputs of a row are 4 bytes; fill the last unit and panel with zeros.
    """
    outputs, inputs = rows.shape
    count = -(-outputs // PANEL)
    filled = functional.pad(rows, (0, -inputs % unit, 0, count * PANEL - outputs))
    return filled.view(count, PANEL, -1, unit).transpose(1, 2).contiguous()


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


class PackedLinear(nn.Module):
    """An `nn.Linear` or `Conv1D` with a packed copy of its weight."""

    def __init__(self, source: Any, packed: PackedWeight) -> None:
        super().__init__()
        self.weight, self.bias = source.weight, source.bias  # for modules that read them
        self.packed, self.out_features = packed, packed.outputs
        self._linear = packed.linear(source.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """Multiply `hidden` [..., in_features] by the weight; return [..., out_features]."""
        return multiply(self._linear, hidden)


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
        if tensor.nbytes > self._chunk_bytes:  # has memory of its own
            return _typed(_allocate(tensor.nbytes), tensor)
        if self._used + tensor.nbytes > len(self._chunk):
            self._chunk, self._used = _allocate(self._chunk_bytes), 0
        held = _typed(self._chunk[self._used : self._used + tensor.nbytes], tensor)
        self._used += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
        return held


def _typed(held: Tensor, tensor: Tensor) -> Tensor:
    """Copy a tensor into the bytes `held`; return them with its type and shape."""
    return held.view(tensor.dtype).view(tensor.shape).copy_(tensor)


def _allocate(size: int) -> Tensor:
    """Return memory of `size` bytes, if possible in huge pages."""
    try:
        # Private, because shared memory, the default, usually gets no huge pages.
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory.madvise(mmap.MADV_HUGEPAGE)
    except (AttributeError, OSError):  # another system than Linux, or a kernel without huge pages
        return torch.empty(size, dtype=torch.uint8)
    return torch.frombuffer(memory, dtype=torch.uint8)


HUGE_PAGES = HugePages()


class Copies(Generic[CopyT]):
    """Copies of the weights of linear layers in another form, which all views of a model share:
    each is made once, and again if the weight was written since. They live as long as the layers.
    """

    def __init__(self, make: Callable[[Tensor], CopyT]) -> None:
        """Make copies by a function of the weight [out_features, in_features]."""
        self._make = make
        # with the version of the weight
        self._made: WeakKeyDictionary[nn.Module, tuple[int, CopyT]] = WeakKeyDictionary()

    def of(self, linear: Any) -> CopyT:
        """Return the copy for a linear layer."""
        version = 0 if linear.weight.is_inference() else linear.weight._version
        if linear not in self._made or self._made[linear][0] != version:
            self._made[linear] = version, self._make(linear_weight(linear))
        return self._made[linear][1]


def packed(view: PreTrainedModel, weights: Copies[PackedWeight]) -> PreTrainedModel:
    """Return a copy of a view in which each linear layer is a `PackedLinear`."""
    linears = filter(is_linear, view.modules())
    layers = {linear: PackedLinear(linear, weights.of(linear)) for linear in linears}
    return shallow_view.substituted(view, layers)


def is_linear(module: nn.Module) -> bool:
    """Return True if a module is a linear layer."""
    return type(module) in shallow_view.LINEARS


def linear_weight(module: Any) -> Tensor:
    """Return the weight [out_features, in_features] of a linear layer."""
    weight: Tensor = module.weight
    return weight.t() if type(module) is Conv1D else weight
