"""The command `ulskip report`: read, group and judge rows; write tables, plots and a page. No model
is loaded.
"""

import gc
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import Console

from ulskip_cli.core.errors import UsageError, require_choice
from ulskip_cli.core.files import write_atomic
from ulskip_cli.experiments.record import Record
from ulskip_cli.experiments.statistics import GATE, Scorer, shares
from ulskip_cli.report import answers, compare, paper, screen, tables
from ulskip_cli.report.frontier import frontiers
from ulskip_cli.report.html_page import Page
from ulskip_cli.report.plots import save_plots
from ulskip_cli.report.rows import Group, done, find_folders, grouped, ordered, read_records
from ulskip_cli.report.tables import Section
from ulskip_cli.report.winners import Winner, winners

FOLDER = "report"
NO_TERMINAL = 100  # columns of output into a file or a pipe
FORMATS = ("terminal", "markdown", "csv", "latex")
LAYOUTS = ("table4", "long")
PAPER = "paper"


@dataclass(frozen=True)
class Options:
    """The options of `ulskip report`."""

    folders: Sequence[Path] = ()  # results folders; empty: all under `results_dir`
    against: str | None = None  # `paper`, or a folder of results to compare with
    form: str = "terminal"  # every other format is printed and no file is written
    layout: str | None = None  # layout of the printed table; None: table 4
    output: Path | None = None  # where files go; None: `report/` within the folder
    page: bool = False
    plots: bool = True
    gate: float = GATE
    tolerance: float = compare.TOLERANCE
    most: int = answers.MAX_EXAMPLES  # examples on the page
    as_json: bool = False
    results_dir: Path = Path("results")

    def check(self) -> None:
        """Raise UsageError for unknown names and for numbers out of range."""
        require_choice("format", self.form, FORMATS)
        if self.layout is not None:
            require_choice("layout", self.layout, LAYOUTS)
        if not 0 < self.gate <= 1:
            raise UsageError(
                f"expected --gate to be above 0 and at most 1, got {self.gate:g}; use --gate=0.9"
                " for 90% of full"
            )
        if not 0 < self.tolerance < 1:
            raise UsageError(
                f"expected --tolerance between 0 and 1, got {self.tolerance:g}; use"
                " --tolerance=0.15 for 15%"
            )
        if self.most < 0:
            raise UsageError(
                f"expected --examples to be 0 or more, got {self.most}; use --examples=0 for none"
            )


@dataclass
class Report:
    """The rows of a report with their groups, winners and comparison."""

    options: Options
    paths: list[Path]
    records: list[Record]
    groups: list[Group]
    winners: dict[str, list[Winner]]
    sections: list[Section] = field(default_factory=list)
    comparison: compare.Comparison | None = None

    @classmethod
    def of(cls, options: Options) -> "Report":
        """Read the rows, choose winners, and make the comparison that the options request."""
        options.check()
        paths = find_folders(options.folders, options.results_dir)
        records = ordered(read_records(paths))
        groups = grouped(records)
        by_label = {group.label: winners(group, options.gate) for group in groups}
        for group in groups:
            for caveat in sorted(
                {share.caveat for share in shares(group.records, options.gate).values()} - {""}
            ):
                print(
                    f"ulskip: {group.label}: {caveat}; use a stronger model or another metric",
                    file=sys.stderr,
                )
        made = cls(
            options,
            paths,
            records,
            groups,
            {label: chosen for label, chosen in by_label.items() if chosen},
        )
        for frontier in frontiers(records):
            made.sections += frontier.sections()
        if options.against == PAPER:
            made.sections += paper.beside_paper(groups, options.gate)
        elif options.against:
            made._against(Path(options.against))
        return made

    @cached_property
    def table4(self) -> list[Section]:
        """The report's rows in the layout of the paper's table 4."""
        return paper.table4(self.records)

    @cached_property
    def long(self) -> Section:
        """The long table, one line per row."""
        return tables.long_section(self.records)

    def _against(self, path: Path) -> None:
        old = read_records(find_folders([path], self.options.results_dir))
        options = self.options
        self.comparison = compare.compare(
            self.records, old, Scorer(), options.tolerance, options.gate
        )
        if not self.comparison.pairs:
            names = ", ".join(f"'{folder}'" for folder in self.paths[:3]) + (
                " and others" if len(self.paths) > 3 else ""
            )
            raise UsageError(
                f"expected points that '{path}' and {names} both contain, got none; compare runs of"
                " one task"
            )
        self.sections.append(compare.comparison_section(f"Comparison with {path}", self.comparison))

    def as_dict(self, written: Sequence[Path]) -> dict[str, Any]:
        """Return the report as plain values."""
        values: dict[str, Any] = {
            "folders": list(map(str, self.paths)),
            "rows": len(self.records),
            "done": len(done(self.records)),
            "gate": self.options.gate,
            "winners": {
                label: [winner.as_dict() for winner in chosen]
                for label, chosen in self.winners.items()
            },
        }
        if self.options.against == PAPER:
            values["paper"] = [section.lines() for section in self.sections]
        if self.comparison:
            values["comparison"] = [pair.as_dict() for pair in self.comparison.pairs]
        return {**values, "files": list(map(str, written))}

    def text(self, form: str, layout: str) -> str:
        """Return the complete table of a layout in an output format."""
        if layout == "table4":
            return {"markdown": paper.markdown, "csv": paper.to_csv, "latex": paper.latex}[form](
                self.table4
            )
        if form == "csv":
            return tables.to_csv(self.records)
        if form == "latex":
            return tables.latex(
                replace(self.long, title=self.long.title or "All points", note=""), "long"
            )
        notes = (self.long.note, tables.provenance(self.records))
        return tables.escape_markdown(
            "\n\n".join([f"# {self.long.title}", tables.markdown(self.long), *notes]) + "\n"
        )

    def markdown(self) -> str:
        """Return the text of report.md."""
        title, table4 = f"# {self.long.title}".rstrip(), paper.markdown(self.table4).strip()
        parts = [title, "## Layout of the paper's table 4", table4]
        for label, chosen in self.winners.items():
            parts.append(f"## Winners{f', {label}' if len(self.winners) > 1 else ''}")
            parts.append(
                f"Winners are chosen among points that keep {self.options.gate:.0%} of full's"
                " quality by their whole interval."
            )
            parts.append("\n".join(f"- {winner.line()}" for winner in chosen))
        for section in self.sections:
            parts += [f"## {section.title}", tables.markdown(section), section.note]
        parts += [
            "## All points",
            tables.markdown(self.long),
            self.long.note,
            tables.provenance(self.records),
        ]
        return tables.escape_markdown("\n\n".join(part for part in parts if part) + "\n")


def run(options: Options) -> None:
    """Make a report and show it. Garbage collection is off: it finds little to free and takes a
    sixth of the time.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        _run(options)
    finally:
        if was_enabled:
            gc.enable()


def _run(options: Options) -> None:
    made = Report.of(options)
    if options.form != "terminal" and not options.as_json:
        print(made.text(options.form, options.layout or "table4"), end="")
        return
    written = write(made)
    if options.as_json:
        print(json.dumps(made.as_dict(written), ensure_ascii=False))
        return
    screen.show(made, Console(width=None if sys.stdout.isatty() else NO_TERMINAL), written)


def write(made: Report) -> list[Path]:
    """Write all files of a report and return their paths."""
    options = made.options
    folder = (
        options.output or (made.paths[0] if len(made.paths) == 1 else made.paths[0].parent) / FOLDER
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = f"expected a writable folder, got '{folder}' ({error.strerror or error})"
        raise UsageError(f"{reason}; choose another with --output=FOLDER") from None
    texts = {
        "report.md": made.markdown(),
        "long.csv": made.text("csv", "long"),
        "long.tex": f"{tables.LATEX_HEADER}\n{made.text('latex', 'long')}",
        "table4.csv": made.text("csv", "table4"),
        "table4.tex": f"{tables.LATEX_HEADER}\n{made.text('latex', 'table4')}",
    }
    for name, text in texts.items():
        write_atomic(folder / name, text)
    plots = save_plots(made.groups, options.gate, folder) if options.plots else []
    written = [*(folder / name for name in texts), *(file for plot in plots for file in plot.files)]
    if options.page:
        stored = answers.collect(made.groups, made.records, options.most)
        page = Page(
            made.groups, made.records, options.gate, made.winners, plots, stored, made.sections
        )
        write_atomic(folder / "report.html", page.html())
        written.append(folder / "report.html")
    return written
