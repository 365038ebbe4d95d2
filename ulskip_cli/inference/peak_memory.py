"""Measure the peak memory of a block of code."""

import threading
from types import TracebackType
from typing import Self

import psutil
import torch

SAMPLE_SECONDS = 0.05  # shorter peaks can be missed


class PeakMemory:
    """A context manager that measures `peak_bytes`: peak of the CUDA allocator, or sampled resident memory on other devices."""

    def __init__(self, device: torch.device) -> None:
        self.peak_bytes = 0
        self._device = device
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Self:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._device.type == "cuda":
            self.so_far()
        else:
            self._done.set()
            self._thread.join()

    def so_far(self) -> int:
        """Return the peak in bytes up to now."""
        if self._device.type == "cuda":
            self.peak_bytes = torch.cuda.max_memory_allocated(self._device)
        return self.peak_bytes

    def _sample(self) -> None:
        process = psutil.Process()
        while True:
            self.peak_bytes = max(self.peak_bytes, process.memory_info().rss)
            if self._done.wait(SAMPLE_SECONDS):
                return
