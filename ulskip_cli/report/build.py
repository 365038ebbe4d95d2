"""A report: read, group and judge rows; show them, and write tables, a plot and a page. No model is
loaded.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

from rich.console import Console

from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.files import check_writable, write_atomic
from ulskip_cli.experiments.record import Record
from ulskip_cli.experiments.statistics import GATE, shares
from ulskip_cli.report import paper, tables
from ulskip_cli.report.frontier import frontiers
from ulskip_cli.report.html_page import MAX_EXAMPLES, render
from ulskip_cli.report.plots import save_quality
from ulskip_cli.report.rows import (
    Group,
    find_folders,
    grouped,
    ordered,
    read_records,
    warnings,
)
from ulskip_cli.report.tables import TableSection
from ulskip_cli.report.verdicts import (
    RULE,
    TOLERANCE,
    Comparison,
    Winner,
    compare,
    two_depths,
    unlike_states,
    winners,
)

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
    tolerance: float = TOLERANCE
    results_dir: Path = Path("results")

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
        """The winners by setting; of several settings, those without a winner are left out."""
        several = len(self.groups) > 1
        by_label = {
            group.label: [
                winner for winner in winners(group, self.gate) if winner.points or not several
            ]
            for group in self.groups
        }
        return {label: chosen for label, chosen in by_label.items() if chosen}

    @cached_property
    def warnings(self) -> list[str]:
        """The warnings of the runs, and warnings about scores that are too low to compare and about
        speeds of another depth than the quality.
        """
        caveats = {
            f"{group.records[0].model}: {share.caveat}; use a stronger model": None
            for group in self.groups
            for share in shares(group.records).values()
            if share.caveat
        }
        depths = dict.fromkeys(text for group in self.groups for text in two_depths(group))
        states = dict.fromkeys(text for group in self.groups for text in unlike_states(group))
        return [*caveats, *depths, *states, *warnings(self.records)]

    @cached_property
    def comparison(self) -> Comparison | None:
        """The comparison with the folder `against`."""
        if not self.against or self.against == PAPER:
            return None
        old = read_records(find_folders([Path(self.against)], self.results_dir))
        compared = compare(self.records, old, self.tolerance, self.gate)
        if not compared.pairs:
            names = ", ".join(f"'{path}'" for path in self.paths[:3])
            raise UsageError(
                f"expected points that '{self.against}' and {names} both contain, got none;"
                " compare runs of one task"
            )
        return compared

    @cached_property
    def sections(self) -> list[TableSection]:
        """Further tables: frontiers, and the comparison with `against`."""
        found = [section for front in frontiers(self.records) for section in front.sections()]
        if self.against == PAPER:
            found += paper.beside_paper(self.groups)
        if self.comparison:
            found.append(self.comparison.section(f"Comparison with {self.against}"))
        return found

    @property
    def rule(self) -> str:
        """The rule by which winners are chosen."""
        return RULE.format(gate=f"{self.gate:.0%}")

    def winners_title(self, label: str) -> str:
        """Return the heading of a setting's winners."""
        return f"Winners{f', {label}' if len(self.groups) > 1 else ''}"

    def markdown(self) -> str:
        """Return the text of report.md."""
        parts = [f"# {self.long.title}".rstrip()]
        parts += ["## Layout of the paper's table 4", paper.paper_markdown(self.table4)]
        for label, chosen in self.winners.items():
            parts += [
                f"## {self.winners_title(label)}",
                self.rule,
                "\n".join(f"- {winner.line()}" for winner in chosen),
            ]
        parts += map(tables.with_heading, self.sections)
        if self.warnings:
            parts += ["## Warnings", "\n".join(f"- {warning}" for warning in self.warnings)]
        parts += ["## All points", tables.markdown(self.long), self.long.note]
        parts.append(tables.provenance(self.records))
        return tables.escape_markdown("\n\n".join(filter(None, parts)) + "\n")


def write(
    report: Report,
    output: Path | None = None,
    plots: bool = True,
    page: bool = False,
    most: int = MAX_EXAMPLES,
) -> list[Path]:
    """Write all files of a report and return their paths; by default into `report/` in the results
    folder. A `page` shows the answers to `most` examples of each data set.
    """
    paths, text = report.paths, report.markdown()  # refused rows leave no folder behind
    folder = output or (paths[0] if len(paths) == 1 else paths[0].parent) / "report"
    check_writable(folder, "--output")
    plot = save_quality(report.groups, folder / "quality", report.gate) if plots else []
    files = [folder / "report.md", *plot]
    write_atomic(files[0], text)
    if page:
        files.append(folder / PAGE)
        write_atomic(files[-1], render(report, plot, most))
    return files


def show(report: Report, written: Sequence[Path], console: Console) -> None:
    """Show a report on a terminal: table 4, the winners, other tables and warnings."""
    tell = partial(console.print, soft_wrap=False)

    def more(count: int, what: str) -> None:
        if count > 0:
            tell(f"report.md has {count} more {what}")

    def draw(section: TableSection) -> None:
        shown = replace(section, cells=section.cells[:MAX_LINES])
        if shown.cells:
            tell(tables.draw(shown, console.width, "report.md"))
        more(len(section.cells) - MAX_LINES, "lines")

    for section in report.table4[:MAX_SETTINGS]:
        draw(section)
    more(len(report.table4) - MAX_SETTINGS, "tables")
    tell(paper.NOTE, style="italic")
    for label, chosen in list(report.winners.items())[:MAX_SETTINGS]:
        tell(f"\n{report.winners_title(label)}", style="bold")
        for winner in chosen:
            tell(f"  {winner.line()}")
        tell("")
    if report.winners:
        tell(report.rule, style="italic")
    more(len(report.winners) - MAX_SETTINGS, "settings with winners")
    for section in report.sections:
        draw(section)
    for warning in report.warnings:
        tell(f"warning: {warning}", style="yellow")
    folder = written[0].parent
    has_page = folder / PAGE in written
    page = f"open {folder / PAGE}" if has_page else "add --html for a page with examples"
    console.print(f"written to {folder}/; {page}")
