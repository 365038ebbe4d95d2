"""A report on a terminal: a table, the winners, what was compared."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding

from ulskip_cli.report import claims, gate, table, table4
from ulskip_cli.report.gathered import WORDS, Report
from ulskip_cli.report.page import Section

MOST_LINES = 60  # of a table on a terminal; files have all
MOST_SETTINGS = 6
COLOURS = {"holds": "green", "tie": "yellow", "does not hold": "red"}


def show(made: Report, console: Console, written: Sequence[Path]) -> None:
    """The report on a terminal: a table or two, the winners, what was compared."""
    if made.options.layout in (None, "table4"):
        _show_table4(made, console)
    if made.options.layout == "long":
        rows = made.rows[:MOST_LINES]
        columns, note = made.columns, table.footnote(made.rows)
        console.print(table.fitted(rows, columns, console.width, table.title(made.rows), note, "long.csv"))
        _more(len(made.rows) - MOST_LINES, "points", "long.csv", console)
    for label, found in list(made.winners.items())[:MOST_SETTINGS]:
        _show_winners(f"Winners{f', {label}' if len(made.winners) > 1 else ''}", found, made.options.gate, console)
    _more(len(made.winners) - MOST_SETTINGS, "settings' winners", "report.md", console)
    for section in made.sections:
        if section.sentences:
            _show_claims(section.title, made.judged, console)
        else:
            _show_section(section, console)
    folder = written[0].parent
    page = f"; open {folder / 'report.html'}" if made.options.page else "; --html for a page to look through"
    console.print(f"written to {folder}/{page}", highlight=False, soft_wrap=True)


def _show_table4(made: Report, console: Console) -> None:
    left, more = MOST_LINES, 0
    for one in made.tables:
        lines = one.lines[: max(left, 0)]
        if lines:
            console.print(table.fitted(lines, one.columns, console.width, one.heading, "", "table4.csv", words=WORDS))
        left, more = left - len(lines), more + len(one.lines) - len(lines)
    console.print(table4.NOTE, style="italic", highlight=False)
    _more(more, "lines", "table4.csv", console)


def _show_winners(title: str, found: Sequence[gate.Winner], share: float, console: Console) -> None:
    console.print(f"\n{escape(title)}, among points that keep {share:.0%} of full's quality", style="bold", highlight=False)
    for one in found:
        word = "tie: " if one.tie else ""
        names = ", ".join(one.names[:4]) + (f" and {len(one.names) - 4} more" if len(one.names) > 4 else "")
        note = f" ({one.note})" if one.note and one.names else one.note
        figures = f", {one.figures[0]}" if len(one.figures) == 1 else ""
        console.print(f"  {one.title}: {word}{escape(names)}{figures}{note}", highlight=False)
    console.print()


def _show_section(section: Section, console: Console) -> None:
    lines = section.lines[:MOST_LINES]
    console.print(
        table.fitted(lines, section.columns, console.width, section.title, section.note, "report.md", words=section.words)
    )
    _more(len(section.lines) - MOST_LINES, "lines", "report.md", console)


def _show_claims(title: str, judged: Sequence[claims.Claim], console: Console) -> None:
    console.print(f"\n{title}: {claims.summary(judged)}", style="bold", highlight=False)
    for claim in judged[:MOST_LINES]:
        setting = f" ({claim.setting})" if claim.setting else ""
        before = f"; before: {claim.old.verdict}, {claim.old.figures}" if claim.old else ""
        console.print(f"[{COLOURS[claim.new.verdict]}]{claim.new.verdict}[/]: {escape(claim.text + setting)}", highlight=False)
        console.print(Padding(f"{claim.new.figures}{before}", (0, 0, 0, 4), expand=False), style="dim", highlight=False)
    _more(len(judged) - MOST_LINES, "claims", "report.md", console)
    console.print()


def _more(count: int, what: str, file: str, console: Console) -> None:
    if count > 0:
        console.print(f"and {count} {what} more in {file}", highlight=False)
