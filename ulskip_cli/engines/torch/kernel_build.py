"""Compile the CPU kernels, once on each machine. Imports no torch, so that a command can start to
compile while it still imports torch.
"""

import contextlib
import os
import platform
import shlex
import shutil
import subprocess
import threading
from pathlib import Path

from ulskip_cli.core.environment import cpu_flags, runs_on_cpu
from ulskip_cli.core.files import cache_dir, replacing
from ulskip_cli.core.fingerprint import key

SOURCE = Path(__file__).with_name("kernels.cpp")
_FLAGS = ("-O3", "-march=native", "-fopenmp", "-shared", "-fPIC", "-std=c++20")
_lock = threading.Lock()  # one build at a time


def compiler() -> list[str]:
    """Return the command of the C++ compiler, or nothing without one or with ULSKIP_KERNEL=off."""
    if os.environ.get("ULSKIP_KERNEL") == "off":
        return []
    named = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), "")
    return shlex.split(named)


def library(command: list[str]) -> Path:
    """Return the path of the library that a compiler builds for this processor."""
    processor = cpu_flags() or platform.machine() + platform.processor()
    name = key(SOURCE.read_text("utf-8"), command, _FLAGS, processor)
    return cache_dir() / "kernels" / f"{name}.so"


def build(command: list[str]) -> Path:
    """Build the library unless it exists, and return its path; raise OSError or
    CalledProcessError if the compiler fails.
    """
    with _lock:
        path = library(command)
        if not path.is_file():
            with replacing(path) as made:
                words = [*command, *_FLAGS, str(SOURCE), "-o", str(made)]
                subprocess.run(words, check=True, capture_output=True, text=True)
        return path


def start(device: str) -> None:
    """Begin to build the library in the background, if `model.device` is the CPU, the library is
    missing and there is a compiler. A failure is reported when the library is loaded.
    """
    if not runs_on_cpu(device):
        return
    command = compiler()
    if not command or library(command).is_file():
        return

    def quietly() -> None:
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            build(command)

    threading.Thread(target=quietly, daemon=True).start()
