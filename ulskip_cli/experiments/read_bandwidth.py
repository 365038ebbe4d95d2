"""Measure the rate at which this machine reads memory."""

from collections.abc import Callable
from functools import partial

import psutil
import torch

from ulskip_cli.inference.timing import now

READ_BYTES = 2**29  # larger than any cache
MEMORY_SHARE = 0.25  # at most this share of free memory is read
STREAMS = 1, 2, 4, 8  # places that a thread reads in turn; which number is fastest differs


class ReadBandwidth:
    """A buffer in memory, and the rate at which it is read."""

    def __init__(self, device: torch.device) -> None:
        self.device, size = device, READ_BYTES
        if device.type == "cpu":
            size = min(size, int(MEMORY_SHARE * psutil.virtual_memory().available))
        self._buffer = torch.ones(max(1, size // 32), 8, device=device)
        flat = self._buffer.view(-1)
        halves = flat.view(2, -1)
        self._reads: list[Callable[[], object]] = [
            *(partial(torch.sum, flat.view(streams, -1), dim=1) for streams in STREAMS),
            partial(torch.amax, flat.view(STREAMS[-1], -1), dim=1),
            partial(torch.dot, halves[0], halves[1]),
        ]

    def measure(self) -> float:
        """Return the bytes/s of the fastest of several ways to read the buffer once."""
        with torch.inference_mode():
            return self._buffer.nbytes / min(map(self._seconds, self._reads))

    def _seconds(self, read: Callable[[], object]) -> float:
        began = now(self.device)
        read()
        return now(self.device) - began
