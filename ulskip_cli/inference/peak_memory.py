"""Peak memory since a reset: of torch's allocator on a GPU, or of this process on other devices."""

import contextlib
import resource
import sys
from pathlib import Path

import torch


def reset(device: torch.device) -> None:
    """Reset the peak. On a CPU this works on Linux only; elsewhere the peak counts from the start
    of the process.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets the peak resident set size


def peak_bytes(device: torch.device) -> int:
    """Return the peak in bytes since the last reset."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
