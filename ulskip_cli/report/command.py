"""What `ulskip report` does: rows in, tables, pictures and a page out. Nothing is measured, and no model is loaded."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from ulskip_cli.errors import UsageError, one_of
from ulskip_cli.report import beside_paper, claims, compare, examples, gate, latex, sources, table, table4
from ulskip_cli.report.difference import Scorer
from ulskip_cli.report.groups import Group, grouped
from ulskip_cli.report.page import Page, Section
from ulskip_cli.report.status import done
from ulskip_cli.results import Row, write_whole

FORMATS = ("terminal", "markdown", "csv", "latex")
LAYOUTS = ("table4", "long")
PAPER = "paper"
MOST_LINES = 60  # of a table on a terminal; files have all
FOLDER = "report"
WORDS = 2  # columns of table 4 and its kin that are words


@dataclass(frozen=True)
class Options:
    """What is asked for.

    Attributes:
        folders: of results; empty: all under `results_dir`.
        against: `paper`, a folder of results to compare with, or None.
        form: of FORMATS; any but `terminal` prints that and writes nothing.
        layout: of LAYOUTS, for the printed table; None: both on a terminal, table 4 elsewhere.
        output: where files go; None: `report/` within the folder.
        page: whether the page is written.
        plots: whether the pictures are.
        gate: share of full's quality that a winner keeps.
        tolerance: by how much a speedup measured again may differ.
        most: examples on the page.
        as_json: whether one object is printed instead of tables.
        results_dir: where results usually are.
    """

    folders: Sequence[Path] = ()
    against: str | None = None
    form: str = "terminal"
    layout: str | None = None
    output: Path | None = None
    page: bool = False
    plots: bool = True
    gate: float = gate.GATE
    tolerance: float = claims.TOLERANCE
    most: int = examples.MOST_EXAMPLES
    as_json: bool = False
    results_dir: Path = Path("results")

    def check(self) -> None:
        """Refuse what cannot be.

        Raises:
            UsageError: a name is unknown or a number is out of its range.
        """
        one_of("format", self.form, FORMATS)
        if self.layout is not None:
            one_of("layout", self.layout, LAYOUTS)
        if not 0 < self.gate <= 1:
            raise UsageError(
                f"expected --gate to be a share above 0, at most 1, got {self.gate:g}; 0.9 keeps 90% of full's score"
            )
        if not 0 < self.tolerance < 1:
            raise UsageError(f"expected --tolerance to be a share between 0 and 1, got {self.tolerance:g}")
        if self.most < 0:
            raise UsageError(f"expected --examples to be 0 or more, got {self.most}")


@dataclass
class Report:
    """A report in the making."""

    options: Options
    paths: list[Path]
    rows: list[Row]
    groups: list[Group]
    winners: dict[str, list[gate.Winner]]
    sections: list[Section] = field(default_factory=list)
    comparison: compare.Comparison | None = None
    claims: list[claims.Claim] = field(default_factory=list)

    @classmethod
    def of(cls, options: Options) -> "Report":
        """Read rows, compare what is to be compared.

        Raises:
            UsageError: there are no rows, or an option cannot be.
        """
        options.check()
        paths = sources.folders(options.folders, options.results_dir)
        rows = table.ordered(sources.read(paths))
        groups = grouped(rows)
        named = {group.label: gate.winners(group, options.gate) for group in groups}
        made = cls(options, paths, rows, groups, {label: found for label, found in named.items() if found})
        if options.against == PAPER:
            made._beside_paper()
        elif options.against:
            made._against(Path(options.against))
        return made

    def _beside_paper(self) -> None:
        for group in beside_paper.worth(self.groups):
            title = "Beside the paper" + (f": {group.label}" if len(self.groups) > 1 else "")
            lines, columns = beside_paper.comparison(group, self.options.gate)
            self.sections.append(Section(title, lines, columns, beside_paper.note(group)))

    def _against(self, path: Path) -> None:
        old = sources.read(sources.folders([path], self.options.results_dir))
        scorer = Scorer()
        self.comparison = compare.compare(self.rows, old, scorer)
        if not self.comparison.pairs:
            raise UsageError(
                f"expected points that both sides have, got none; '{path}' and {_joined(self.paths)} hold other points"
            )
        self.claims = claims.claims(self.rows, old, self.options.gate, scorer, self.options.tolerance)
        if self.claims:
            self.sections.append(Section("Claims", *claims.lines(self.claims), claims.summary(self.claims)))
        lines, columns = compare.lines(self.comparison)
        self.sections.append(Section(f"Against {path}", lines, columns, compare.note(self.comparison)))

    def told(self, written: Sequence[Path]) -> dict[str, Any]:
        """For machines."""
        found: dict[str, Any] = {
            "folders": list(map(str, self.paths)),
            "rows": len(self.rows),
            "done": len(done(self.rows)),
            "gate": self.options.gate,
            "winners": {label: [one.told() for one in found] for label, found in self.winners.items()},
        }
        if self.options.against == PAPER:
            found["paper"] = [section.lines for section in self.sections]
        if self.comparison:
            found["comparison"] = [pair.told() for pair in self.comparison.pairs]
            found["claims"] = [claim.told() for claim in self.claims]
        return {**found, "files": list(map(str, written))}

    def text(self, form: str, layout: str) -> str:
        """One table in one format, all rows of it."""
        if layout == "long":
            shown: dict[str, Callable[[], str]] = {
                "markdown": lambda: table.markdown(self.rows),
                "csv": lambda: table.to_csv(self.rows),
                "latex": lambda: latex.booktabs(
                    self.rows, table.columns_for(self.rows), table.title(self.rows) or "All points", "long"
                ),
            }
            return shown[form]()
        if form == "markdown":
            return table4.markdown(self.rows)
        if form == "csv":
            return table4.to_csv(self.rows)
        parts = table4.tables(self.rows)
        return "\n".join(
            latex.booktabs(
                one.lines, one.columns, f"{one.heading}. {table4.NOTE[0].upper()}{table4.NOTE[1:]}.", f"table4-{i}", WORDS
            )
            for i, one in enumerate(parts, start=1)
        )


def run(options: Options) -> None:
    """Make a report and show it."""
    made = Report.of(options)
    if options.form != "terminal" and not options.as_json:
        print(made.text(options.form, options.layout or "table4"), end="")
        return
    written = write(made)
    if options.as_json:
        print(json.dumps(made.told(written), ensure_ascii=False))
        return
    show(made, Console(width=None if sys.stdout.isatty() else 100), written)


def write(made: Report) -> list[Path]:
    """Write all files of a report.

    Returns:
        The files.
    """
    folder = made.options.output or _home(made.paths) / FOLDER
    texts = {
        "report.md": _markdown(made),
        "long.csv": made.text("csv", "long"),
        "long.tex": f"{latex.HEADER}\n{made.text('latex', 'long')}",
        "table4.csv": made.text("csv", "table4"),
        "table4.tex": f"{latex.HEADER}\n{made.text('latex', 'table4')}",
    }
    for name, text in texts.items():
        write_whole(folder / name, text)
    written = [folder / name for name in texts]
    pictures = []
    if made.options.plots:
        from ulskip_cli.report import pictures as drawn

        pictures = drawn.draw(made.groups, made.options.gate)
        written += [file for one in pictures for file in one.save(folder)]
    if made.options.page:
        answers = examples.collect(made.rows, made.options.most)
        page = Page(made.groups, made.rows, made.options.gate, made.winners, pictures, answers, made.sections)
        write_whole(folder / "report.html", page.html())
        written.append(folder / "report.html")
    return written


def show(made: Report, console: Console, written: Sequence[Path]) -> None:
    """The report on a terminal: a table or two, the winners, what was compared."""
    if made.options.layout in (None, "table4"):
        _show_table4(made, console)
    if made.options.layout == "long":
        rows = made.rows[:MOST_LINES]
        columns, note = table.columns_for(made.rows), table.footnote(made.rows)
        console.print(table.fitted(rows, columns, console.width, table.title(made.rows), note, "long.csv"))
        _more(len(made.rows) - MOST_LINES, "points", "long.csv", console)
    for label, found in made.winners.items():
        _show_winners(f"Winners{f', {label}' if len(made.winners) > 1 else ''}", found, made.options.gate, console)
    for section in made.sections:
        lines = section.lines[:MOST_LINES]
        drawn = table.fitted(lines, section.columns, console.width, section.title, section.note, "report.md", wrap=("claim",))
        console.print(drawn)
        _more(len(section.lines) - MOST_LINES, "lines", "report.md", console)
    folder = written[0].parent
    page = f"; open {folder / 'report.html'}" if made.options.page else "; --html for a page to look through"
    console.print(f"written to {folder}/{page}", highlight=False, soft_wrap=True)


def _show_table4(made: Report, console: Console) -> None:
    left, more = MOST_LINES, 0
    for one in table4.tables(made.rows):
        lines = one.lines[: max(left, 0)]
        if lines:
            console.print(table.fitted(lines, one.columns, console.width, one.heading, "", "table4.csv", words=WORDS))
        left, more = left - len(lines), more + len(one.lines) - len(lines)
    console.print(table4.NOTE, style="italic", highlight=False)
    _more(more, "lines", "table4.csv", console)


def _show_winners(title: str, found: Sequence[gate.Winner], share: float, console: Console) -> None:
    console.print(f"\n{title}, among points that keep {share:.0%} of full's quality", style="bold", highlight=False)
    for one in found:
        word = "tie: " if one.tie else ""
        names = ", ".join(one.names[:4]) + (f" and {len(one.names) - 4} more" if len(one.names) > 4 else "")
        note = f" ({one.note})" if one.note and one.names else one.note
        figures = f", {one.figures[0]}" if len(one.figures) == 1 else ""
        console.print(f"  {one.title}: {word}{names}{figures}{note}", highlight=False)
    console.print()


def _markdown(made: Report) -> str:
    parts = [
        f"# {table.title(made.rows)}".rstrip(),
        "## In the layout of the paper's table 4",
        table4.markdown(made.rows).strip(),
    ]
    for label, found in made.winners.items():
        heading = f"## Winners{f', {label}' if len(made.winners) > 1 else ''}"
        lines = [f"Among points that keep {made.options.gate:.0%} of full's quality:", ""]
        for one in found:
            told = "; ".join(f"{name} {figure}" for name, figure in zip(one.names, one.figures, strict=True))
            note = f" ({one.note})" if one.note and told else one.note
            lines.append(f"- {one.title}: {'a tie of ' if one.tie else ''}{told}{note}")
        parts += [heading, "\n".join(lines)]
    for section in made.sections:
        words = 1 if section.title == "Claims" else WORDS
        parts += [f"## {section.title}", table.grid(section.lines, section.columns, words), section.note]
    long = table.grid(made.rows, table.columns_for(made.rows))
    parts += ["## All points", long, table.footnote(made.rows), table.provenance(made.rows)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _home(paths: Sequence[Path]) -> Path:
    """The folder itself, or the one that several have in common."""
    if len(paths) == 1:
        return paths[0]
    return paths[0].parent


def _more(count: int, what: str, file: str, console: Console) -> None:
    if count > 0:
        console.print(f"and {count} {what} more in {file}", highlight=False)


def _joined(paths: Sequence[Path]) -> str:
    return ", ".join(f"'{path}'" for path in paths[:3]) + (" and others" if len(paths) > 3 else "")
