"""Read the clock after a device has finished its work, and compute statistics of timings."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from statistics import median

import torch


def now(device: torch.device) -> float:
    """Wait for all work of the device and return a monotonic clock in seconds."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()


class AccumulatingTimer:
    """A timer that sums many short durations; on CUDA, it synchronises only when the sum is read."""

    def __init__(self, device: torch.device) -> None:
        self._on_cuda = device.type == "cuda"
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._total = self._began = 0.0

    def begin(self) -> None:
        """Begin to measure a duration."""
        if self._on_cuda:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
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


@dataclass(frozen=True)
class Interval:
    """A median with a confidence interval between two order statistics."""

    median: float
    low: float  # the k-th smallest sample
    high: float  # the k-th largest sample
    coverage: float  # probability that such an interval contains the true median


def median_interval(samples: Sequence[float], confidence: float = 0.95) -> Interval:
    """Compute the median of independent samples and its distribution-free confidence interval.

    A sample lies below the true median with probability 1/2, so the k-th smallest and the k-th largest of n samples enclose it
    with probability 1 - 2 P(Binomial(n, 1/2) < k) (David and Nagaraja, Order Statistics, 3rd ed., section 7.1). The result uses
    the largest k that reaches `confidence`, or k = 1: fewer than six samples cannot reach 95%.

    >>> median_interval([3.0, 1.0, 2.0, 7.0, 5.0, 6.0, 4.0])
    Interval(median=4.0, low=1.0, high=7.0, coverage=0.984375)
    """
    values = sorted(map(float, samples))
    count, rank, outside = len(values), 1, 1
    while rank < (count + 1) // 2 and 2 * (outside + comb(count, rank)) <= (1 - confidence) * 2**count:
        outside += comb(count, rank)
        rank += 1
    return Interval(median(values), values[rank - 1], values[-rank], 1 - 2 * outside / 2**count)
