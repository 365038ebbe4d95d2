"""Peak memory of a stretch of work, not of a process's life."""

import threading
from types import TracebackType
from typing import Self

import psutil
import torch

SAMPLE_SECONDS = 0.05


class PeakMemory:
    """Context manager; `peak_bytes` is the most memory seen inside it.

    On CUDA the allocator's own peak; elsewhere the process's resident memory, sampled, so that a shorter
    spike can be missed.
    """

    def __init__(self, device: torch.device) -> None:
        """Watch `device`."""
        self.peak_bytes = 0
        self._device = device
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Self:
        """Start watching."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Stop watching and keep the peak."""
        if self._device.type == "cuda":
            self.peak_bytes = torch.cuda.max_memory_allocated(self._device)
        else:
            self._done.set()
            self._thread.join()

    def so_far(self) -> int:
        """The peak until now."""
        if self._device.type == "cuda":
            self.peak_bytes = torch.cuda.max_memory_allocated(self._device)
        return self.peak_bytes

    def _sample(self) -> None:
        process = psutil.Process()
        while True:
            self.peak_bytes = max(self.peak_bytes, process.memory_info().rss)
            if self._done.wait(SAMPLE_SECONDS):
                return
