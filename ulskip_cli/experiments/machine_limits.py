"""Measure the limits of this machine: bytes read from memory and floating-point operations per second."""

from collections.abc import Callable
from dataclasses import dataclass

import psutil
import torch

from ulskip_cli.inference.timing import now

READ_BYTES = 2**30  # larger than any cache
MEMORY_SHARE = 0.25  # at most this share of free memory is read
ROUNDS = 5
LARGEST_SIDE = 8192
LEAST_SECONDS = 0.05  # a product that takes this long reaches the machine's full speed


@dataclass(frozen=True)
class MachineLimits:
    """The limits of one device, dtype and number of threads."""

    bytes_per_second: float  # of reading memory far larger than caches
    flops_per_second: float  # of a large matrix product; a multiplication and an addition count as two


def measure(device: torch.device, dtype: torch.dtype) -> MachineLimits:
    """Measure both limits, each as the best of several rounds."""
    with torch.inference_mode():
        return MachineLimits(read_bytes_per_second(device), matmul_flops_per_second(device, dtype))


def read_bytes_per_second(device: torch.device) -> float:
    """Return the bytes/s at which a buffer is read once, by a sum or a dot product, whichever is faster."""
    size = READ_BYTES
    if device.type == "cpu":
        size = min(size, int(MEMORY_SHARE * psutil.virtual_memory().available))
    buffer = torch.ones(size // 4, dtype=torch.float32, device=device)
    halves = buffer[: len(buffer) // 2], buffer[len(buffer) // 2 :][: len(buffer) // 2]
    return size / min(_best_seconds(device, buffer.sum), _best_seconds(device, lambda: torch.dot(*halves)))


def matmul_flops_per_second(device: torch.device, dtype: torch.dtype) -> float:
    """Return the best FLOP/s of square matrix products, whose size doubles until one takes long enough to time."""
    side, best = 256, 0.0
    while True:
        matrix = torch.randn(side, side, device=device).to(dtype)
        seconds = _best_seconds(device, lambda matrix=matrix: matrix @ matrix)  # type: ignore[misc]
        best = max(best, 2 * side**3 / seconds)
        if seconds >= LEAST_SECONDS or side >= LARGEST_SIDE:
            return best
        side *= 2


def _best_seconds(device: torch.device, work: Callable[[], object]) -> float:
    work()
    spent = []
    for _ in range(ROUNDS):
        began = now(device)
        work()
        spent.append(now(device) - began)
    return min(spent)
