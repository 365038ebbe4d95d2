"""The device of device.cpp: it computes on the CPU and refuses to mix tensors with the CPU's."""

import hashlib
import subprocess
import types
from pathlib import Path

import pytest
import torch

from ulskip_cli.core.files import cache_dir, replacing
from ulskip_cli.engines.torch import compiler

NAME = "pretended"
SOURCE = Path(__file__).with_name("device.cpp")


class Module(types.ModuleType):
    """The functions that torch calls for a device, as `torch.cuda` has them."""

    is_open = False  # so that other tests in the process find no accelerator

    def is_available(self):
        return self.is_open

    def device_count(self):
        return int(self.is_open)

    def current_device(self):
        return 0

    def get_amp_supported_dtype(self):
        return [torch.bfloat16]

    def _is_in_bad_fork(self):
        return False

    def nothing(self, *args):
        """Nothing is computed later or cached, and the generator of the CPU has the seed."""

    synchronize = empty_cache = manual_seed_all = nothing


def library():
    """Return the path of the compiled device; it is compiled once, in about 10 s."""
    command = compiler()
    if not command:
        pytest.skip("requires a C++ compiler", allow_module_level=True)
    torch_folder = Path(torch.__path__[0])
    headers = [torch_folder / "include", torch_folder / "include/torch/csrc/api/include"]
    words = [*command, "-O0", "-shared", "-fPIC", "-std=c++20", *(f"-I{path}" for path in headers)]
    words += [str(SOURCE), f"-L{torch_folder / 'lib'}", "-ltorch_cpu", "-lc10"]
    parts = [SOURCE.read_text("utf-8"), torch.__version__, *words]
    name = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    path = cache_dir() / "kernels" / f"{name}.so"
    if not path.is_file():
        with replacing(path) as made:
            subprocess.run([*words, "-o", str(made)], check=True)
    return path


def register():
    """Register the device in this process, once, and return its module."""
    if not hasattr(torch, NAME):
        torch.ops.load_library(library())
        torch.utils.rename_privateuse1_backend(NAME)
        torch._register_device_module(NAME, Module(f"torch.{NAME}"))
        torch.utils.generate_methods_for_privateuse1_backend()
    return getattr(torch, NAME)
