"""Results of a command on the terminal: one JSON object, or tables and warnings."""

import json
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from rich.console import Console

from ulskip_cli.core.printable import printable

if TYPE_CHECKING:
    from rich.table import Table

    from ulskip_cli.core.config_schema import Config, TrainingConfig
    from ulskip_cli.experiments.record import Record
    from ulskip_cli.experiments.results import ResultsFolder
    from ulskip_cli.experiments.sweep.jobs import SweepOutcome

PIPE_COLUMNS = 120  # of tables that go into a file or a pipe


def make_console() -> Console:
    """Return a console for standard output."""
    return Console(width=None if sys.stdout.isatty() else PIPE_COLUMNS)


def print_commented(*configs: "Config | TrainingConfig") -> None:
    """Print a configuration as YAML with comments; for several points, print the first and the
    number of points.
    """
    from ulskip_cli.core.config_reference import to_commented_yaml

    if len(configs) > 1:
        print(
            f"# The first of {len(configs)} points; `ulskip sweep --dry-run` lists the points of a"
            " sweep."
        )
    print(to_commented_yaml(configs[0]), end="")


def show_outcome(
    outcome: "SweepOutcome",
    folder: "ResultsFolder",
    make_tables: Callable[["Sequence[Record]", int], "Sequence[Table]"],
    sentences: Callable[["Sequence[Record]"], "Sequence[str]"],
    as_json: bool,
) -> None:
    """Print a JSON object, or else sentences, tables and warnings, and raise RunError if a point
    failed.

    `make_tables` takes records and the width of the terminal in columns.
    """
    records = list(outcome.records.values())
    if as_json:
        print(json.dumps(outcome.as_json(), ensure_ascii=False))
    elif records:
        console = make_console()
        for sentence in sentences(records):
            console.print(
                printable(sentence), style="bold", highlight=False, markup=False, soft_wrap=True
            )
        for table in make_tables(records, console.width):
            console.print(table)
        for warning in sorted({text for record in records for text in record.warnings}):
            console.print(
                f"warning: {printable(warning)}", style="yellow", highlight=False, markup=False
            )
        console.print(f"written to {folder.path}/", markup=False, highlight=False, soft_wrap=True)
    outcome.check()
