"""The bands in which speedups of README and docs/ lie on other machines and days.

benchmarks/results/machines.jsonl has a line for each speedup of a row that one machine measured on
one day; `make verify` appends those of this machine.
"""

import hashlib
import json
import math
import platform
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from ulskip_cli.core.files import append_line
from ulskip_cli.experiments.intervals import Interval, student_t
from ulskip_cli.experiments.record import Record

FILE = Path(__file__).parent / "results" / "machines.jsonl"
SHOWN_FROM = 3  # machines or days
BOOT = Path("/proc/sys/kernel/random/boot_id")


class Measurement(NamedTuple):
    """A speedup of a row, measured on one machine and day; None is not known."""

    id: str  # of the row
    point: str  # the row in words
    speedup: float
    low: float | None  # ends of the interval of this run
    high: float | None
    host: str  # tells machines of one description apart
    day: str | None
    machine: str | None
    version: str | None


class Band(NamedTuple):
    """The interval in which 95% of other machines measure the speedup of a row."""

    interval: Interval
    count: int  # of the machines and days that measured it

    def text(self) -> str:
        """Return the band with two digits, e.g. `1.9 (1.7 to 2.2; 3 machines)`."""
        value, low, high = (two_digits(end or 0.0) for end in self.interval)
        machines = "1 machine" if self.count == 1 else f"{self.count} machines"
        return f"{value} ({low} to {high}; {machines})"


def two_digits(value: float) -> str:
    """Format a number with two digits.

    >>> two_digits(1.96), two_digits(26.2), two_digits(0.516)
    ('2.0', '26', '0.52')
    """
    return f"{value:.{max(0, 1 - math.floor(math.log10(value)))}f}"


def read(file: Path = FILE) -> list[Measurement]:
    """Read the measurements; the last of a row, machine and day counts."""
    lines = file.read_text("utf-8").splitlines() if file.exists() else []
    found = (Measurement(**json.loads(line)) for line in lines)
    return list({(line.id, line.host, line.day): line for line in found}.values())


def host() -> str:
    """Return a name of this machine since its start, without its own name."""
    boot = BOOT.read_text() if BOOT.exists() else platform.node()
    return hashlib.sha256(boot.encode()).hexdigest()[:8]


def point(record: Record) -> str:
    """Name the model, the strategy and the layers of a row, its engine and its batch size."""
    runs = f"{record.model}, {record.label} with {record.summary}"
    return f"{runs}, {record.decoded_by}, batch {record.batch_size}"


def append(record: Record, file: Path) -> None:
    """Append the speedup that this machine measured, unless there is none or the file has it."""
    if not record.speedup or not record.environment:
        return
    line = Measurement(
        record.id,
        point(record),
        *record.speedup,
        host(),
        (record.finished_at or "")[:10],
        record.environment.machine,
        record.environment.version,
    )
    if line not in read(file):
        append_line(file, json.dumps(line._asdict()))


def bands(measurements: Iterable[Measurement]) -> dict[str, Band]:
    """Return the band of each measured row by its id.

    The logarithm of a speedup is the row's mean and a random effect of the machine and the run,
    whose standard deviation all rows share (method of moments), because three machines alone say
    little about a row's own. The band of the next machine includes the uncertainty of the mean.
    """
    logs = defaultdict[str, list[float]](list)
    for line in measurements:
        logs[line.id].append(math.log(line.speedup))
    means = {row: fmean(values) for row, values in logs.items()}
    squares = sum((log - means[row]) ** 2 for row, values in logs.items() for log in values)
    freedom = sum(len(values) - 1 for values in logs.values())
    if not freedom:
        return {}
    half = student_t(freedom) * math.sqrt(squares / freedom)
    found = {}
    for row, values in logs.items():
        reach = half * math.sqrt(1 + 1 / len(values))
        ends = Interval(means[row], means[row] - reach, means[row] + reach)
        found[row] = Band(ends.through(math.exp), len(values))
    return found


def shown(record: Record, form: str = ".2f") -> str:
    """Return the band of a row's speedup, or if fewer than SHOWN_FROM machines measured it, the
    value and interval of its run.
    """
    band = bands(read()).get(record.id)
    if band and band.count >= SHOWN_FROM:
        return band.text()
    return record.speedup.text(form) if record.speedup else ""
