"""What a result depends on besides its configuration: versions, code, machine."""

import functools
import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

__version__ = "0.1.0"
MACHINE = ("processor", "instruction_set", "accelerator")
PACKAGES = ("torch", "transformers", "tokenizers", "hydra-core", "omegaconf", "sacrebleu", "numpy")


def code() -> dict[str, Any]:
    """Versions of this program and its packages; git commit and dirty flag where it runs from a checkout."""
    return {"ulskip": __version__, "python": platform.python_version(), "packages": packages(), **_git()}


def process_seconds() -> float:
    """How long this process has been running, Python's own start included."""
    return time.time() - psutil.Process().create_time()


def packages() -> dict[str, str | None]:
    """Installed versions of the packages that results depend on."""
    return {name: _version(name) for name in PACKAGES}


def machine(device: str = "cuda") -> dict[str, Any]:
    """Processor, threads and instruction set, and the accelerator that a device is on, None if this machine has no such."""
    import torch

    where = torch.device(device)
    used = where.type == "cuda" and (where.index or 0) < torch.cuda.device_count()
    return {
        "platform": platform.platform(),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "accelerator": torch.cuda.get_device_name(where) if used else None,
    }


def origin(device: str) -> dict[str, Any]:
    """What batches of one run have in common: code and machine."""
    facts = machine(device)
    return {
        "ulskip": __version__,
        "git_commit": _git()["git_commit"],
        **packages(),
        **{key: facts[key] for key in (*MACHINE, "threads")},
    }


def is_like_here(measured: Mapping[str, Any], device: str, also: Sequence[str] = ()) -> bool:
    """True if an environment that a row keeps is that of a machine like this one.

    Args:
        measured: the row's `environment`.
        device: the row's device.
        also: keys of `machine` that must agree too.
    """
    here = machine(device)
    return all(measured.get(key) == here[key] for key in (*MACHINE, *also))


def is_likely_here(measured: Mapping[str, Any]) -> bool:
    """True if the processor is this machine's, which can be told without torch."""
    return bool(measured.get("processor") == _processor())


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


@functools.cache  # of the code that runs, not of what becomes of its files
def _git() -> dict[str, Any]:
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return {"git_commit": None, "git_dirty": None}

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True).stdout.strip()

    try:
        return {
            "git_commit": git("rev-parse", "HEAD"),
            "git_dirty": bool(git("status", "--porcelain", "--", ".", ":(exclude)results", ":(exclude)benchmarks/results")),
        }
    except (OSError, subprocess.CalledProcessError):
        return {"git_commit": None, "git_dirty": None}


@functools.cache
def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
