"""Clocks and the statistics of what they read."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch


def now(device: torch.device) -> float:
    """Seconds on a steady clock, once everything queued on the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()


@dataclass(frozen=True)
class Interval:
    """A median with a 95% bootstrap interval."""

    median: float
    low: float
    high: float


def median_interval(samples: Sequence[float], seed: int = 0, resamples: int = 2000) -> Interval:
    """Median of samples and the percentile bootstrap interval of that median.

    >>> median_interval([2.0, 2.0, 2.0])
    Interval(median=2.0, low=2.0, high=2.0)
    """
    values = np.asarray(samples, dtype=float)
    draws = np.random.default_rng(seed).choice(values, (resamples, len(values)))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    return Interval(float(np.median(values)), float(low), float(high))
