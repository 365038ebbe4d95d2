"""Intervals of measured ratios, which are estimated from units of some timed pairs each."""

import math
from collections.abc import Callable, Sequence
from functools import cache
from statistics import NormalDist, fmean, stdev
from typing import NamedTuple

UNITS = 3  # the least number of units that has an interval
CONFIDENCE = 0.95
# Standard deviation of a speedup's logarithm between processes (benchmarks/results/coverage.md).
# Units of one process are taken close to one another, in one state of the machine.
PROCESS_SPREAD = 0.015
# Fewer than `ENOUGH` units can agree by chance, so their standard deviation is at least that of
# units on quiet machines, 5.2% to 6.8% (the same page). Without it, every ninth interval of three
# units reached less than 5% to each side.
ENOUGH, UNIT_SPREAD = 8, 0.05


class Interval(NamedTuple):
    """A value with the ends of its interval; the ends are None where an interval is needed and
    there are too few units or examples.
    """

    value: float
    low: float | None = None
    high: float | None = None

    def row(self, key: str) -> dict[str, float | None]:
        """Return the value under a key of a row, and the ends under `KEY_low` and `KEY_high`."""
        return {key: self.value, f"{key}_low": self.low, f"{key}_high": self.high}

    def through(self, function: Callable[[float], float]) -> "Interval":
        """Apply an increasing function to the value and the ends."""
        low, high = (None if end is None else function(end) for end in (self.low, self.high))
        return Interval(function(self.value), low, high)

    def minus(self, other: "Interval") -> "Interval":
        """Subtract an independent value. The distances from both values to their ends are added as
        squares (MOVER; Zou and Donner, 2008).
        """
        value = self.value - other.value
        if self.low is None or self.high is None or other.low is None or other.high is None:
            return Interval(value)
        below = math.hypot(self.value - self.low, other.high - other.value)
        above = math.hypot(self.high - self.value, other.value - other.low)
        return Interval(value, value - below, value + above)

    def ends(self, form: str = ".2f") -> str | None:
        """Format the ends, e.g. `1.10 to 1.30`; return None if they are not known."""
        return None if self.low is None else f"{self.low:{form}} to {self.high:{form}}"

    def text(self, form: str) -> str:
        """Format the value and, if they are known, the ends, e.g. `1.20 (1.10 to 1.30)`."""
        ends = self.ends(form)
        return f"{self.value:{form}}{f' ({ends})' if ends else ''}"


def ratio_interval(units: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """Estimate a ratio from its measurements in the units of one process: the geometric mean, with
    the interval of Student's t over the logarithms, widened by `PROCESS_SPREAD` and, of few units,
    by `UNIT_SPREAD`.

    Fewer than `UNITS` units have a range, from the smallest to the largest, which is no interval.

    >>> [round(end, 2) for end in ratio_interval([2.0, 2.1, 1.9])]
    [2.0, 1.76, 2.27]
    """
    logs = [math.log(ratio) for ratio in units]
    mean = fmean(logs)
    if len(logs) < UNITS:
        return Interval(math.exp(mean), min(units), max(units))
    spread = max(stdev(logs), UNIT_SPREAD * (len(logs) < ENOUGH))
    noise = student_t(len(logs) - 1, confidence) * spread / math.sqrt(len(logs))
    half = math.hypot(noise, normal(confidence) * PROCESS_SPREAD)
    return Interval(math.exp(mean), math.exp(mean - half), math.exp(mean + half))


def normal(confidence: float) -> float:
    """Return half the width of an interval of a normal distribution, in standard deviations."""
    return NormalDist().inv_cdf((1 + confidence) / 2)


@cache
def student_t(freedom: int, confidence: float = CONFIDENCE) -> float:
    """Return the value within which Student's t with `freedom` degrees of freedom is with a
    probability of `confidence`.

    The probability of |T| < t is the finite series 26.7.3 or 26.7.4 of Abramowitz and Stegun,
    Handbook of Mathematical Functions.

    >>> [round(student_t(freedom), 3) for freedom in (1, 2, 5, 30)]
    [12.706, 4.303, 2.571, 2.042]
    """
    low = high = 1.0
    while _inside(high, freedom) < confidence:
        low, high = high, 2 * high
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (middle, high) if _inside(middle, freedom) < confidence else (low, middle)
    return low


def _inside(t: float, freedom: int) -> float:
    """Return the probability of |T| < t."""
    angle = math.atan(t / math.sqrt(freedom))
    term, total = (1.0, 0.0) if freedom % 2 == 0 else (math.cos(angle), 0.0)
    for order in range(freedom % 2 + 2, freedom + 1, 2):
        total += term
        term *= math.cos(angle) ** 2 * (order - 1) / order
    total *= math.sin(angle)
    return total if freedom % 2 == 0 else 2 / math.pi * (angle + total)
