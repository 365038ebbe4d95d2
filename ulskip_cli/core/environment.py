"""The environment of a result: versions of code and packages, the machine, and access to the
Hugging Face hub.
"""

import contextlib
import functools
import logging
import os
import platform
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

__version__ = "0.2.0"
MACHINE = ("processor", "instruction_set", "accelerator")
PACKAGES = ("torch", "transformers", "tokenizers", "omegaconf", "sacrebleu", "numpy")


def code() -> dict[str, Any]:
    """Return the versions of this program and its packages, and the git commit and dirty flag of a
    checkout.
    """
    return {
        "ulskip": __version__,
        "python": platform.python_version(),
        "packages": packages(),
        **_git(),
    }


def packages() -> dict[str, str | None]:
    """Return the installed versions of the packages that results depend on."""
    return {name: _version(name) for name in PACKAGES}


def machine(device: str = "cuda") -> dict[str, Any]:
    """Describe the machine: processor, threads and how they wait, instruction set, and CUDA
    accelerator (None for others).
    """
    import torch

    place = torch.device(device)
    has_gpu = place.type == "cuda" and (place.index or 0) < torch.cuda.device_count()
    return {
        "platform": platform.platform(),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "wait_policy": os.environ.get("OMP_WAIT_POLICY"),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "accelerator": torch.cuda.get_device_name(place) if has_gpu else None,
    }


def origin(device: str) -> dict[str, Any]:
    """Return the code and the machine that all batches of one run must share."""
    here = machine(device)
    return {
        "ulskip": __version__,
        "git_commit": _git()["git_commit"],
        **packages(),
        **{key: here[key] for key in (*MACHINE, "threads")},
    }


def is_like_here(measured: Mapping[str, Any], device: str, also: Sequence[str] = ()) -> bool:
    """Return True if a row's `environment` describes a machine like this one; `also` lists further
    keys to compare.
    """
    here = machine(device)
    return all(measured.get(key) == here[key] for key in (*MACHINE, *also))


def is_likely_here(measured: Mapping[str, Any]) -> bool:
    """Return True if a row was measured on a processor like this machine's; this check needs no
    torch.
    """
    return bool(measured.get("processor") == _processor())


@contextlib.contextmanager
def offline_if_hub_unreachable() -> Iterator[None]:
    """Use only the local cache inside the block if the hub cannot be reached; the next block checks
    again.
    """
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    try:
        check_hub_reachable()
    except OSError:
        constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def check_hub_reachable() -> None:
    """Raise OSError if the hub's host name cannot be resolved; the hub's own client would retry for
    half a minute.
    """
    from urllib.parse import urlsplit
    from urllib.request import getproxies

    from huggingface_hub import constants

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    if not getproxies():
        socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, None)


def _version(name: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:
        return None


@functools.cache  # the state at the first call is the code that runs, even if files change later
def _git() -> dict[str, Any]:
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return {"git_commit": None, "git_dirty": None}

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return {
            "git_commit": git("rev-parse", "HEAD"),
            "git_dirty": bool(
                git(
                    "status",
                    "--porcelain",
                    "--",
                    ".",
                    ":(exclude)results",
                    ":(exclude)benchmarks/results",
                )
            ),
        }
    except (OSError, subprocess.CalledProcessError):
        return {"git_commit": None, "git_dirty": None}


@functools.cache
def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(
            line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
        )
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
