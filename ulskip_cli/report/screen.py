"""Output of a report on a terminal: table 4 or the long table, the winners and the comparison."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from ulskip_cli.report import paper, tables
from ulskip_cli.report.tables import Section
from ulskip_cli.report.winners import Winner

if TYPE_CHECKING:
    from ulskip_cli.report.build import Report

MAX_LINES = 60  # of a table on a terminal; files have all lines
MAX_SETTINGS = 6
MAX_NAMES = 4  # of points that tie


def show(made: "Report", console: Console, written: Sequence[Path]) -> None:
    """Show a report on a terminal."""
    if made.options.layout == "long":
        _show_section(made.long, "long.csv", console)
    else:
        _show_table4(made.table4, console)
    for label, chosen in list(made.winners.items())[:MAX_SETTINGS]:
        title = f"Winners{f', {label}' if len(made.winners) > 1 else ''}"
        _show_winners(
            f"{title}, among points that keep {made.options.gate:.0%} of full's quality",
            chosen,
            console,
        )
    _more(len(made.winners) - MAX_SETTINGS, "settings with winners", "report.md", console)
    for section in made.sections:
        _show_section(section, "report.md", console)
    folder = written[0].parent
    page = (
        f"; open {folder / 'report.html'}"
        if made.options.page
        else "; add --html for a page with examples"
    )
    console.print(f"written to {folder}/{page}", markup=False, highlight=False, soft_wrap=True)


def _show_table4(sections: Sequence[Section], console: Console) -> None:
    left = MAX_LINES
    for section in sections:
        if left > 0:
            console.print(
                tables.draw(
                    replace(section, cells=section.cells[:left]), console.width, "table4.csv"
                )
            )
        left -= len(section.cells)
    console.print(paper.NOTE, style="italic", highlight=False)
    _more(-left, "lines", "table4.csv", console)


def _show_section(section: Section, file: str, console: Console) -> None:
    console.print(
        tables.draw(replace(section, cells=section.cells[:MAX_LINES]), console.width, file)
    )
    _more(len(section.cells) - MAX_LINES, "lines", file, console)


def _show_winners(title: str, winners: Sequence[Winner], console: Console) -> None:
    console.print(f"\n{title}", style="bold", markup=False, highlight=False)
    for winner in winners:
        console.print(f"  {winner.line(MAX_NAMES)}", markup=False, highlight=False)
    console.print()


def _more(count: int, what: str, file: str, console: Console) -> None:
    if count > 0:
        console.print(f"{file} has {count} more {what}", highlight=False)
