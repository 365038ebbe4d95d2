"""The CPU kernels of decode steps, a matrix product for few rows and attention of one token,
compiled once on each machine.
"""

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ulskip_cli.core.cache import cache_dir

SOURCE = Path(__file__).with_name("kernels.cpp")
PANEL = 32  # outputs in a panel, as in kernels.cpp
_FLAGS = ("-O3", "-march=native", "-fopenmp", "-shared", "-fPIC", "-std=c++20")
DTYPES = (torch.float32, torch.bfloat16)

_failures: dict[str, str] = {}  # reason by compile command, for builds that failed in this process


def unsupported_reason() -> str | None:
    """Return the reason why this process cannot use the kernels, or None; nothing is built or
    loaded.
    """
    if os.environ.get("ULSKIP_KERNEL") == "off":
        return "ULSKIP_KERNEL=off"
    if is_loaded():
        return None
    return build_failure() if _compiler() else "no C++ compiler"


def build_failure() -> str | None:
    """Return the reason why this process failed to build or load the kernels, or None if it did not
    fail.
    """
    return _failures.get(shlex.join(_compiler()))


def is_loaded() -> bool:
    """Return True if the kernels are loaded."""
    return hasattr(torch.ops.ulskip, "linear")


def load(on_build: Callable[[], object] = lambda: None) -> str | None:
    """Load the kernels once per process; return None, or the reason why they cannot be used.

    The first call on a machine calls `on_build` and compiles for about half a minute. A failed
    build is not repeated.
    """
    reason = unsupported_reason()
    if reason or is_loaded():
        return reason
    compiler = _compiler()
    try:
        if not _library(compiler).is_file():
            on_build()
        torch.ops.load_library(_built(compiler))  # type: ignore[no-untyped-call]
    except (OSError, subprocess.CalledProcessError) as error:
        text = getattr(error, "stderr", "") or str(error)
        reason = _failures[shlex.join(compiler)] = (
            f"{compiler[0]} failed: {' '.join(text.split())[:160]}"
        )
        return reason
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
    with zeros.
    """
    outputs, inputs = weight.shape
    unit = 4 // weight.element_size()
    panels = -(-outputs // PANEL)
    filled = torch.nn.functional.pad(
        weight.detach(), (0, -inputs % unit, 0, panels * PANEL - outputs)
    )
    return filled.view(panels, PANEL, -1, unit).transpose(1, 2).contiguous()


def linear(hidden: Tensor, packed: Tensor, bias: Tensor | None, out_features: int) -> Tensor:
    """Multiply `hidden` [..., in_features] by a weight from `pack`; return [..., out_features],
    accumulated in float32.

    Both tensors are on the CPU, in float32, or in bfloat16 with an even in_features. The kernel
    must be loaded.
    """
    product: Tensor = torch.ops.ulskip.linear(hidden, packed, bias, out_features)
    return product


def attention(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float
) -> Tensor:
    """Return the attention output [batch, queries, heads, head_dim] of a `query` [batch, heads,
    queries, head_dim].

    `keys` and `values` are [batch, kv_heads, length, head_dim]; query heads share them in equal
    groups. `mask` is additive and broadcasts to [batch, heads, queries, length]; without one, every
    query attends to every key. All are on the CPU, in float32 or all in bfloat16; sums are in
    float32.
    """
    attended: Tensor = torch.ops.ulskip.attention(query, keys, values, mask, scale)
    return attended


def _empty_product(hidden: Tensor, packed: object, bias: object, out_features: int) -> Tensor:
    return hidden.new_empty((*hidden.shape[:-1], out_features))


def _compiler() -> list[str]:
    named = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), "")
    return shlex.split(named)


def _library(compiler: list[str]) -> Path:
    parts = (
        SOURCE.read_text("utf-8"),
        torch.__version__,
        " ".join([*compiler, *_FLAGS]),
        _processor(),
    )
    name = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    return cache_dir() / "kernels" / f"{name}.so"


def _built(compiler: list[str]) -> Path:
    from torch.utils import cpp_extension

    library = _library(compiler)
    if library.is_file():
        return library
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as staging:
        made = Path(staging) / library.name
        paths = [f"-I{path}" for path in cpp_extension.include_paths()]
        paths += [f"-L{path}" for path in cpp_extension.library_paths()]
        files = [str(SOURCE), "-o", str(made)]
        command = [*compiler, *_FLAGS, *paths, *files, "-ltorch_cpu", "-lc10"]
        subprocess.run(command, check=True, capture_output=True, text=True)
        made.replace(library)
    return library


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        return next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        return platform.machine() + platform.processor()
