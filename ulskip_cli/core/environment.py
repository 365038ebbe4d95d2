"""The environment of a result: versions, the machine, its load by other processes, and access to
the Hugging Face hub.
"""

import contextlib
import functools
import logging
import os
import platform
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from ulskip_cli.core.files import JsonObject

__version__ = "0.6.0"
MACHINE = ("processor", "instruction_set", "accelerator")
PACKAGES = ("torch", "transformers", "tokenizers", "hydra-core", "omegaconf", "sacrebleu", "numpy")
OTHER_CPUS_LIMIT = 0.2  # CPUs that other processes may use without a remark
NOT_BUSY = ("idle", "iowait", "guest", "guest_nice")  # user time includes that of guests
_ACCELERATORS = ("nvidia[0-9]*", "kfd", "dxg")  # in /dev: of CUDA, ROCm and WSL


def versions() -> JsonObject:
    """Return versions of the program and its packages, and git commit and dirty flag of a
    checkout.
    """
    from importlib.metadata import version

    return {
        "ulskip": __version__,
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        **_git(),
    }


def machine(device: str = "cuda") -> JsonObject:
    """Describe processor, threads, instruction set and accelerator (None without one)."""
    import torch

    return {
        "platform": platform.platform(),
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "accelerator": _accelerator(device),
    }


def _accelerator(device: str) -> str | None:
    """Return the name of a device; None for a CPU, and for a device that this machine lacks."""
    import torch

    with contextlib.suppress(RuntimeError):  # of a device that this torch does not know
        place, module = torch.device(device), torch.get_device_module(device)
        if hasattr(module, "get_device_name") and (place.index or 0) < module.device_count():
            return str(module.get_device_name(place))
    return None


@contextlib.contextmanager
def offline_if_hub_unreachable() -> Iterator[None]:
    """Use only the local cache inside the block if the hub cannot be reached now."""
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
    """Raise OSError if HF_HUB_OFFLINE=1 is set, or the hub's name cannot be resolved; the hub's
    client, which logs errors alone from now on, would retry for half a minute.
    """
    from urllib.parse import urlsplit
    from urllib.request import getproxies

    from huggingface_hub import constants

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    if constants.HF_HUB_OFFLINE:
        raise OSError("HF_HUB_OFFLINE=1 forbids the network")
    if not getproxies():  # a proxy resolves host names itself
        socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, None)


@functools.cache  # the state at the first call is the code that runs, even if files change later
def _git() -> JsonObject:
    """Return git_commit and git_dirty of the checkout; both None in an installed package."""
    root = Path(__file__).parents[2]
    # Runs write results there, which does not change the code.
    paths = [".", ":(exclude)results", ":(exclude)benchmarks/results"]
    command = ["git", "-C", str(root), "status", "--porcelain=v2", "--branch", "--", *paths]
    unknown: JsonObject = {"git_commit": None, "git_dirty": None}
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
def cpu_field(*names: str) -> str:
    """Return the first value in /proc/cpuinfo under one of these names, or an empty text."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    fields = (line.partition(":") for line in lines)
    return next((value.strip() for name, _, value in fields if name.strip() in names), "")


def cpu_flags() -> str:
    """Return the processor's flags, such as `avx2`; empty if the system lists none."""
    return cpu_field("flags", "Features")


def processor() -> str:
    """Return the name of the processor."""
    return cpu_field("model name") or platform.processor() or platform.machine()


@functools.cache
def runs_on_cpu(device: str) -> bool:
    """Return True if `model.device` is the CPU, without torch; False on macOS."""
    has_accelerator = any(any(Path("/dev").glob(name)) for name in _ACCELERATORS)
    is_chosen = device == "auto" and platform.system() == "Linux" and not has_accelerator
    return device == "cpu" or is_chosen


class LoadMeter:
    """Measures how many of our CPUs other processes use on average."""

    def __init__(self) -> None:
        self._before = self._read()

    def other_cpus(self, min_seconds: float) -> float | None:
        """Return the mean number since the meter was made; None before `min_seconds`, because CPU
        time is counted in steps of 10 ms.
        """
        clock, busy, own = (
            after - before for after, before in zip(self._read(), self._before, strict=True)
        )
        return max(0.0, round((busy - own) / clock, 2)) if clock >= min_seconds else None

    @staticmethod
    def _read() -> tuple[float, float, float]:
        """Return the clock, the busy CPU seconds (with those of other guests of the hypervisor,
        `steal`), and the CPU seconds of this process tree.
        """
        import psutil  # takes 20 ms, which a plan does not need

        busy = 0.0
        for number, times in enumerate(psutil.cpu_times(percpu=True)):
            if number in cpus():
                spent = times._asdict().items()
                busy += sum(seconds for key, seconds in spent if key not in NOT_BUSY)
        own = sum(os.times()[:4])  # of this process and of its children that have ended
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                own += sum(child.cpu_times()[:4])
        return time.monotonic(), busy, own


def is_crowded(other_cpus: float | None, threads: int) -> bool:
    """Return True if others use CPUs that `threads` threads need."""
    return other_cpus is not None and threads + other_cpus > len(cpus()) + OTHER_CPUS_LIMIT


def cpus() -> set[int]:
    """Return the CPUs that this process may use."""
    own = getattr(os, "sched_getaffinity", None)
    return own(0) if own else set(range(os.cpu_count() or 1))
