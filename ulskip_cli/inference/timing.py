"""Measure time and memory: the clock after a device has finished its work, and peak memory."""

import contextlib
import resource
import sys
import time
from pathlib import Path

import torch


def now(device: torch.device) -> float:
    """Wait for all work of the device and return a monotonic clock in seconds."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()


class AccumulatingTimer:
    """A timer that sums many short durations; on CUDA, it synchronises only when the sum is
    read.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_cuda = device.type == "cuda"
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._total = self._began = 0.0

    def begin(self) -> None:
        """Begin to measure a duration."""
        if self._on_cuda:
            begin, end = (
                torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
                for _ in range(2)
            )
            self._events.append((begin, end))
            begin.record()
        else:
            self._began = time.perf_counter()

    def end(self) -> None:
        """End the measurement of a duration."""
        if self._on_cuda:
            self._events[-1][1].record()
        else:
            self._total += time.perf_counter() - self._began

    @property
    def seconds(self) -> float:
        """The sum of all durations in seconds."""
        if self._events:
            torch.cuda.synchronize()
        milliseconds: float = sum(begin.elapsed_time(end) for begin, end in self._events)
        return self._total + milliseconds / 1000


def reset_peak(device: torch.device) -> None:
    """Reset the peak of memory. On a CPU this works on Linux only; elsewhere the peak counts from
    the start of the process.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets the peak resident set size


def peak_bytes(device: torch.device) -> int:
    """Return the peak of memory in bytes since the last reset."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
