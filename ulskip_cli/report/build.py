"""A report: read, group and judge rows; show them, and write tables, a plot and a page."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

from rich.console import Console

from ulskip_cli.core.errors import UsageError
from ulskip_cli.experiments.record import Record
from ulskip_cli.experiments.statistics import GATE
from ulskip_cli.report import paper, tables
from ulskip_cli.report.pairs import FolderComparison, compare
from ulskip_cli.report.plots import save_quality
from ulskip_cli.report.rows import (
    Group,
    Item,
    find_folders,
    grouped,
    ordered,
    read_records,
    warnings,
)
from ulskip_cli.report.tables import TableSection
from ulskip_cli.report.verdicts import RULE, Winner, caveats, winners

PAPER = "paper"
PAGE = "report.html"
MAX_LINES = 60  # of a table on a terminal; files have all lines
MAX_SETTINGS = 6


@dataclass(frozen=True)
class Report:
    """The rows of a report, and how they are judged."""

    paths: list[Path]  # results folders
    against: str | None = None  # `paper`, or a folder of results to compare with
    gate: float = GATE

    @cached_property
    def records(self) -> list[Record]:
        """The rows of all folders, in order."""
        return ordered(read_records(self.paths))

    @cached_property
    def groups(self) -> list[Group]:
        """The rows by their settings."""
        return grouped(self.records)

    @cached_property
    def table4(self) -> list[TableSection]:
        """The rows in the layout of the paper's table 4."""
        return paper.table4(self.records)

    @cached_property
    def long(self) -> TableSection:
        """The long table, one line per row."""
        return tables.long_section(self.records)

    @cached_property
    def winners(self) -> dict[str, list[Winner]]:
        """The winners by heading; among several settings, those without a winner are left out."""
        has_several = len(self.groups) > 1
        by_heading = {}
        for group in self.groups:
            heading, chosen = "Winners", winners(group, self.gate)
            if has_several:
                heading = f"Winners, {group.label}"
                chosen = [winner for winner in chosen if winner.points]
            if chosen:
                by_heading[heading] = chosen
        return by_heading

    @cached_property
    def warnings(self) -> list[str]:
        """The caveats of the groups, and the warnings of the runs."""
        distinct = dict.fromkeys(caveat for group in self.groups for caveat in caveats(group))
        return [*distinct, *warnings(self.records)]

    @cached_property
    def comparison(self) -> FolderComparison | None:
        """The comparison with the folder `against`."""
        if not self.against or self.against == PAPER:
            return None
        old = read_records(find_folders([Path(self.against)]))
        compared = compare(self.records, old, self.gate)
        if not compared.pairs:
            names = ", ".join(f"'{path}'" for path in self.paths[:3])
            raise UsageError(
                f"expected points that '{self.against}' and {names} both contain, got none;"
                " compare runs of one task"
            )
        return compared

    @cached_property
    def sections(self) -> list[TableSection]:
        """The tables of the comparison with `against`."""
        if self.against == PAPER:
            return paper.beside_paper(self.groups)
        if self.comparison:
            return [self.comparison.section(f"Comparison with {self.against}")]
        return []

    @property
    def rule(self) -> str:
        """The rule by which winners are chosen."""
        return RULE.format(gate=f"{self.gate:.0%}")

    def parts(self) -> list[str]:
        """Return the parts of report.md."""
        parts = ["## Layout of the paper's table 4", paper.paper_markdown(self.table4)]
        for heading, chosen in self.winners.items():
            lines = "\n".join(f"- {winner.line()}" for winner in chosen)
            parts += [f"## {heading}", self.rule, lines]
        parts += map(tables.with_heading, self.sections)
        if self.warnings:
            parts += ["## Warnings", "\n".join(f"- {warning}" for warning in self.warnings)]
        return [*parts, "## All points", tables.markdown(self.long), self.long.note]


def write(report: Report, plots: bool = True) -> list[Path]:
    """Write tables and plot into `report/` in the results folder, or beside several; return the
    paths.
    """
    paths, parts = report.paths, report.parts()  # refused rows leave no folder behind
    folder = (paths[0] if len(paths) == 1 else paths[0].parent) / "report"
    plot = save_quality(report.groups, folder / "quality", report.gate) if plots else []
    tables.write_markdown(folder / "report.md", report.records, parts)
    return [folder / "report.md", *plot]


def show(report: Report, written: Sequence[Path], console: Console) -> None:
    """Show the first tables and winners on a terminal, all warnings, and where the files are."""
    print_wrapped = partial(console.print, soft_wrap=False)
    left_out = list[str]()  # e.g. "3 more tables"

    def cut(items: Sequence[Item], most: int, noun: str) -> Sequence[Item]:
        """Return the first items, and add the number of the others to `left_out`."""
        if len(items) > most:
            left_out.append(f"{len(items) - most} more {noun}")
        return items[:most]

    def draw(section: TableSection) -> None:
        if section.cells:
            shown = replace(section, cells=list(cut(section.cells, MAX_LINES, "lines")))
            print_wrapped(tables.draw(shown, console.width, "report.md"))

    for section in cut(report.table4, MAX_SETTINGS, "tables"):
        draw(section)
    print_wrapped(paper.NOTE, style="italic")
    by_heading = list(report.winners.items())
    for heading, chosen in cut(by_heading, MAX_SETTINGS, "settings with winners"):
        print_wrapped(f"\n{heading}", style="bold")
        for winner in chosen:
            print_wrapped(f"  {winner.line()}")
        print_wrapped("")
    if by_heading:
        print_wrapped(report.rule, style="italic")
    for section in report.sections:
        draw(section)
    if left_out:
        print_wrapped(f"report.md has {', '.join(left_out)}")
    for warning in report.warnings:
        print_wrapped(f"warning: {warning}", style="yellow")
    last = written[-1]
    page = f"open {last}" if last.name == PAGE else "add --html for a page with examples"
    console.print(f"written to {last.parent}/; {page}")  # not wrapped, so that a path stays whole
