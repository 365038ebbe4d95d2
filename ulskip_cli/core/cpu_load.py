"""The load of this machine by other processes: how OpenMP threads wait beside them, and whether
they disturb timings.
"""

import os
import time
from collections.abc import MutableMapping
from contextlib import suppress

import psutil

MIN_SECONDS = 0.1  # operating systems count CPU time in steps of 10 ms
TOLERANCE = 0.2  # CPUs that other processes may use without a remark
NOT_BUSY = ("idle", "iowait", "guest", "guest_nice")  # user time includes that of guests
WAITING = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY"}


class LoadMeter:
    """Measures the CPUs that other processes use, on average, on the CPUs that this process may
    use.
    """

    def __init__(self) -> None:
        self._before = self._read()

    def other_cpus(self, min_seconds: float = MIN_SECONDS) -> float | None:
        """Return the mean number of CPUs since the start of the meter, or None for a shorter time
        than `min_seconds`.
        """
        clock, busy, own = (
            after - before for after, before in zip(self._read(), self._before, strict=True)
        )
        return max(0.0, round((busy - own) / clock, 2)) if clock >= min_seconds else None

    @staticmethod
    def _read() -> tuple[float, float, float]:
        """Return the clock, the busy CPU seconds (other guests of the hypervisor included), and the
        CPU seconds of this process tree.
        """
        busy = 0.0
        for number, times in enumerate(psutil.cpu_times(percpu=True)):
            if number in _cpus():
                spent = times._asdict().items()
                busy += sum(seconds for key, seconds in spent if key not in NOT_BUSY)
        own = sum(os.times()[:4])  # of this process and of its children that have ended
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                own += sum(child.cpu_times()[:4])
        return time.monotonic(), busy, own


def is_crowded(other_cpus: float | None, threads: int) -> bool:
    """Return True if other processes use CPUs that `threads` threads need too."""
    return other_cpus is not None and threads + other_cpus > len(_cpus()) + TOLERANCE


def let_threads_sleep(other_cpus: float | None, environment: MutableMapping[str, str]) -> None:
    """Let OpenMP threads sleep while they wait if the machine is busy, unless the user has set a
    variable for this.

    Spinning threads are faster on an idle machine, but on a busy one they take CPUs from threads
    that still compute. OpenMP reads the variable when torch is imported.
    """
    threads = environment.get("OMP_NUM_THREADS", "").partition(",")[0]
    asked = int(threads) if threads.isdecimal() else len(_cpus())
    loads = other_cpus, psutil.getloadavg()[0]  # the last minute: not a command that ends soon
    lasting = all(is_crowded(load, asked) for load in loads)
    if asked > 1 and lasting and not environment.keys() & WAITING:
        environment["OMP_WAIT_POLICY"] = "PASSIVE"


def _cpus() -> set[int]:
    """Return the numbers of the CPUs that this process may use."""
    own = getattr(os, "sched_getaffinity", None)
    return own(0) if own else set(range(os.cpu_count() or 1))
