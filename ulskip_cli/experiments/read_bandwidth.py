"""Measure the rate at which this machine reads memory."""

from collections.abc import Callable

import psutil
import torch

from ulskip_cli.inference.timing import now

READ_BYTES = 2**30  # larger than any cache
MEMORY_SHARE = 0.25  # at most this share of free memory is read
ROUNDS = 5


def read_bytes_per_second(device: torch.device) -> float:
    """Return the bytes/s at which a buffer is read once, by a sum or a dot product, whichever is
    faster.
    """
    size = READ_BYTES
    if device.type == "cpu":
        size = min(size, int(MEMORY_SHARE * psutil.virtual_memory().available))
    with torch.inference_mode():
        buffer = torch.ones(size // 4, dtype=torch.float32, device=device)
        halves = buffer[: len(buffer) // 2], buffer[len(buffer) // 2 :][: len(buffer) // 2]
        return size / min(
            _best_seconds(device, buffer.sum), _best_seconds(device, lambda: torch.dot(*halves))
        )


def _best_seconds(device: torch.device, work: Callable[[], object]) -> float:
    work()
    spent = []
    for _ in range(ROUNDS):
        began = now(device)
        work()
        spent.append(now(device) - began)
    return min(spent)
