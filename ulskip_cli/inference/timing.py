"""Device clocks, and the statistics of timings."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch


def now(device: torch.device) -> float:
    """Return a monotonic clock in seconds, after all work queued on the device has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()


class AccumulatingTimer:
    """Adds up the durations of many short intervals; on CUDA it synchronises only when the sum is read."""

    def __init__(self, device: torch.device) -> None:
        self._on_cuda = device.type == "cuda"
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._total = self._began = 0.0

    def begin(self) -> None:
        """Begin an interval."""
        if self._on_cuda:
            self._events.append((_event(), _event()))
            self._events[-1][0].record()
        else:
            self._began = time.perf_counter()

    def end(self) -> None:
        """End the interval."""
        if self._on_cuda:
            self._events[-1][1].record()
        else:
            self._total += time.perf_counter() - self._began

    @property
    def seconds(self) -> float:
        """The sum of all intervals in seconds."""
        if self._events:
            torch.cuda.synchronize()
        milliseconds: float = sum(begin.elapsed_time(end) for begin, end in self._events)
        return self._total + milliseconds / 1000


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class Interval:
    """A median with a 95% bootstrap interval."""

    median: float
    low: float
    high: float


def median_interval(samples: Sequence[float], seed: int = 0, resamples: int = 2000) -> Interval:
    """Compute the median of samples and the percentile bootstrap interval of that median.

    >>> median_interval([2.0, 2.0, 2.0])
    Interval(median=2.0, low=2.0, high=2.0)
    """
    values = np.asarray(samples, dtype=float)
    draws = np.random.default_rng(seed).choice(values, (resamples, len(values)))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    return Interval(float(np.median(values)), float(low), float(high))
