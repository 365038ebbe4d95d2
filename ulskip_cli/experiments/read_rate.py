"""Measure the rate at which this machine reads memory."""

from collections.abc import Callable
from functools import partial

import psutil
import torch

from ulskip_cli.engines.loop import now

READ_BYTES = 2**29  # larger than any cache
MEMORY_SHARE = 0.25  # at most this share of free memory is read
STREAMS = 1, 2, 4, 8  # places that a thread reads in turn; which number is fastest differs


def bandwidth_meter(device: torch.device) -> Callable[[], float]:
    """Return a function that reads a buffer in memory once in several ways, and returns the bytes/s
    of the fastest.
    """
    size = READ_BYTES
    if device.type == "cpu":
        size = min(size, int(MEMORY_SHARE * psutil.virtual_memory().available))
    flat = torch.ones(max(1, size // 32) * 8, device=device)
    reads: list[Callable[[], object]] = [
        *(partial(torch.sum, flat.view(streams, -1), dim=1) for streams in STREAMS),
        partial(torch.amax, flat.view(STREAMS[-1], -1), dim=1),
        partial(torch.dot, *flat.view(2, -1)),
    ]

    def seconds(read: Callable[[], object]) -> float:
        began = now(device)
        read()
        return now(device) - began

    @torch.inference_mode()
    def measure() -> float:
        return flat.nbytes / min(map(seconds, reads))

    return measure
