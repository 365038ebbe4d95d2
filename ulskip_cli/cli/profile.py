"""The table of `ulskip run --profile`."""

from collections.abc import Mapping

from rich.box import SIMPLE_HEAD
from rich.table import Table

BEFORE = ("start", "imports")
MODEL_RUNS = ("warm up", "generate", "decode loss", "timed pairs", "calibrate", "time the layers", "solve")


def profile_table(seconds: Mapping[str, float]) -> Table:
    """Return a table with one line per phase, in order, and the total."""
    total = sum(seconds.values())
    note = f"{beside_the_model(seconds):.2f} s outside Python's start, imports and running the model"
    table = Table(title="Where the time went", caption=note, title_style="bold", box=SIMPLE_HEAD)
    table.title_justify = table.caption_justify = "left"
    table.add_column("phase")
    for head in ("seconds", "share"):
        table.add_column(head, justify="right")
    for label, spent in seconds.items():
        table.add_row(label, f"{spent:.2f}", f"{spent / total:.0%}")
    table.add_row("all", f"{total:.2f}", "")
    return table


def beside_the_model(seconds: Mapping[str, float]) -> float:
    """Return the total seconds of phases that do not run the model, without program start and imports."""
    beside = [label for label in seconds if label not in BEFORE and not label.split(": ")[-1].startswith(MODEL_RUNS)]
    return sum(seconds[label] for label in beside)
