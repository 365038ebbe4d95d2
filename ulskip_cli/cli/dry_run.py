"""A sweep before it is run: its points, what is done of them, and how long the rest may take."""

import json
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any, Protocol

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ulskip_cli.cli.sweep_display import Named, clock, time_left


class Known(Protocol):
    """What is known of jobs."""

    def told(self, job: Any) -> tuple[str, float | None, str]:
        """A job's state, the seconds that it took or may take, and why it has no result or how far it is."""

    def seconds_left(self, jobs: Sequence[Any]) -> tuple[float, int]:
        """Of jobs to do, and the number of those that nothing is known of."""


def show(jobs: Sequence[Named], ledger: Known, as_json: bool, workers: int = 1) -> None:
    """Print it, for people or as one object; the time left is that of so many workers at once."""
    told = {job.id: ledger.told(job) for job in jobs}
    to_do = [job for job in jobs if told[job.id][0] == "to do"]
    seconds, unknown = ledger.seconds_left(to_do)
    seconds /= max(1, min(workers, len(to_do)))
    counts = Counter(state for state, _, _ in told.values())
    if as_json:
        points = [
            {"id": job.id, "label": job.label, "state": state, "seconds": took, "note": note}
            for job, (state, took, note) in zip(jobs, told.values(), strict=True)
        ]
        rest = {"seconds_left": seconds if unknown < len(to_do) or not to_do else None, "points_of_unknown_length": unknown}
        print(json.dumps({"points": points, "counts": counts, **rest}, ensure_ascii=False))
        return
    table = Table(box=SIMPLE_HEAD)
    for name, justify in (("point", "left"), ("id", "left"), ("state", "left"), ("time", "right"), ("", "left")):
        table.add_column(name, justify=justify, no_wrap=bool(name))  # type: ignore[arg-type]
    for job in jobs:
        state, took, note = told[job.id]
        guess = "" if took is None else clock(took) if state == "done" else f"~{clock(took)}"
        table.add_row(job.label, job.id, state, guess, note)
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table)
    parts = ", ".join(f"{count} {state}" for state, count in counts.items())
    left = f"; time left: {time_left(seconds, unknown, len(to_do))}" if to_do else ""
    console.print(f"{len(jobs)} points: {parts}{left}", highlight=False)
