"""What a report says, before it is put on a screen or into files: rows, groups, winners, comparisons."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ulskip_cli.core.errors import UsageError, require_choice
from ulskip_cli.experiments.record import Row
from ulskip_cli.report import beside_paper, claims, compare, examples, gate, latex, settings, sources, table, table4
from ulskip_cli.report.columns import Column, columns_for
from ulskip_cli.report.difference import Scorer
from ulskip_cli.report.groups import Group, grouped
from ulskip_cli.report.page import Section
from ulskip_cli.report.status import done

FORMATS = ("terminal", "markdown", "csv", "latex")
LAYOUTS = ("table4", "long")
PAPER = "paper"
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
        require_choice("format", self.form, FORMATS)
        if self.layout is not None:
            require_choice("layout", self.layout, LAYOUTS)
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
    judged: list[claims.Claim] = field(default_factory=list)

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

    @cached_property
    def tables(self) -> list[table4.Table4]:
        """The rows in the paper's layout."""
        return table4.tables(self.rows)

    @cached_property
    def columns(self) -> list[Column]:
        """Those of the long table."""
        return columns_for(self.rows)

    @cached_property
    def cells(self) -> list[list[str]]:
        """Of the long table, a list a row."""
        return table.cells_of(self.rows, self.columns)

    def _beside_paper(self) -> None:
        for group in beside_paper.worth(self.groups):
            title = "Beside the paper" + (f": {group.label}" if len(self.groups) > 1 else "")
            lines, columns = beside_paper.comparison(group, self.options.gate)
            self.sections.append(Section(title, lines, columns, beside_paper.note(group)))

    def _against(self, path: Path) -> None:
        old = sources.read(sources.folders([path], self.options.results_dir))
        scorer = Scorer()
        both = settings.told([*self.rows, *old])  # what the sides differ in shows in both together
        new, old = both[: len(self.rows)], both[len(self.rows) :]
        self.comparison = compare.compare(new, old, scorer)
        if not self.comparison.pairs:
            raise UsageError(
                f"expected points that both sides have, got none; '{path}' and {_joined(self.paths)} hold other points"
            )
        self.judged = claims.claims(new, old, self.options.gate, scorer, self.options.tolerance)
        if self.judged:
            self.sections.append(Section("Claims", *claims.lines(self.judged), claims.summary(self.judged), sentences=True))
        lines, columns = compare.lines(self.comparison)
        self.sections.append(Section(f"Against {path}", lines, columns, compare.note(self.comparison), words=1))

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
            found["claims"] = [claim.told() for claim in self.judged]
        return {**found, "files": list(map(str, written))}

    def text(self, form: str, layout: str) -> str:
        """One table in one format, all rows of it."""
        if layout == "long":
            if form == "latex":
                return latex.booktabs(self.cells, self.columns, table.title(self.rows) or "All points", "long")
            return table.markdown(self.rows) if form == "markdown" else table.to_csv(self.rows)
        if form == "markdown":
            return table4.markdown(self.tables)
        if form == "csv":
            return table4.to_csv(self.tables)
        note = f"{table4.NOTE[0].upper()}{table4.NOTE[1:]}."
        return "\n".join(
            latex.booktabs(table.cells_of(one.lines, one.columns), one.columns, f"{one.heading}. {note}", f"table4-{i}", WORDS)
            for i, one in enumerate(self.tables, start=1)
        )


def _joined(paths: Sequence[Path]) -> str:
    return ", ".join(f"'{path}'" for path in paths[:3]) + (" and others" if len(paths) > 3 else "")
