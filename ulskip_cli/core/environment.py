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
from collections.abc import Iterator
from pathlib import Path

from ulskip_cli.core.files import Table

__version__ = "0.3.0"
MACHINE = ("processor", "instruction_set", "accelerator")
PACKAGES = ("torch", "transformers", "tokenizers", "hydra-core", "omegaconf", "sacrebleu", "numpy")


def code() -> Table:
    """Return the versions of this program and its packages, and the git commit and dirty flag of a
    checkout.
    """
    from importlib.metadata import version

    return {
        "ulskip": __version__,
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        **_git(),
    }


def machine(device: str = "cuda") -> Table:
    """Describe the machine: processor, threads and how they wait, instruction set, and CUDA
    accelerator (None for others).
    """
    import torch

    place = torch.device(device)
    has_gpu = place.type == "cuda" and (place.index or 0) < torch.cuda.device_count()
    return {
        "platform": platform.platform(),
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "wait_policy": os.environ.get("OMP_WAIT_POLICY"),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "accelerator": torch.cuda.get_device_name(place) if has_gpu else None,
    }


def origin(device: str) -> Table:
    """Return the code version and the machine, which must be the same for all batches of a run."""
    facts = {**code(), **machine(device)}
    del facts["git_dirty"], facts["wait_policy"]  # may change between two attempts
    return facts


@contextlib.contextmanager
def offline_if_hub_unreachable() -> Iterator[None]:
    """Use only the local cache inside the block if the hub cannot be reached.

    Every block checks the hub again.
    """
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    try:
        try:
            check_hub_reachable()
        except OSError:
            constants.HF_HUB_OFFLINE = True
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


@functools.cache  # the state at the first call is the code that runs, even if files change later
def _git() -> Table:
    root = Path(__file__).parents[2]
    paths = [".", ":(exclude)results", ":(exclude)benchmarks/results"]
    command = ["git", "-C", str(root), "status", "--porcelain=v2", "--branch", "--", *paths]
    unknown: Table = {"git_commit": None, "git_dirty": None}
    if not (root / ".git").exists():
        return unknown
    try:
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return unknown
    head, *lines = text.splitlines()
    is_dirty = any(not line.startswith("#") for line in lines)
    return {"git_commit": head.removeprefix("# branch.oid "), "git_dirty": is_dirty}


@functools.cache
def processor() -> str:
    """Return the name of the processor."""
    try:
        text = Path("/proc/cpuinfo").read_text()
        return text.split("model name", 1)[1].split("\n")[0].split(":", 1)[1].strip()
    except (OSError, IndexError):
        return platform.processor() or platform.machine()
