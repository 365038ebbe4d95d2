"""Arrange measured records in the layout of the paper's table 4, and compare them with the paper's
values.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from operator import methodcaller
from pathlib import Path
from statistics import median
from typing import NamedTuple

from ulskip_cli.core.files import write_atomic
from ulskip_cli.experiments.record import COLUMNS, MISSING, Column, Record
from ulskip_cli.experiments.results import ResultsFolder
from ulskip_cli.experiments.statistics import TITLES, primary, shares
from ulskip_cli.report import tables
from ulskip_cli.report.rows import Group, displayed, done, grouped
from ulskip_cli.report.tables import TableSection

BATCHES = (1, 2, 8)
# BLEU on WMT22 (mean of four directions) and tokens/s of prompt and generated tokens at these batch
# sizes. Table 4, arXiv:2404.06954.
TABLE_4: dict[tuple[float, str], tuple[float, int, int | None, int | None]] = {
    (1, "full"): (23.81, 51, 92, 303),
    (2, "early_exit"): (17.82, 73, None, None),
    (2, "skip_decode"): (20.70, 67, 127, 387),
    (2, "unified"): (21.23, 90, 159, 503),
    (5, "early_exit"): (10.02, 167, None, None),
    (5, "skip_decode"): (11.52, 154, 285, 864),
    (5, "unified"): (14.87, 201, 332, 1004),
}
CAVEAT = (
    "The paper: BLOOMZ-7B on WMT22, mean of four directions, on one A100-80G. Our model, data and"
    " hardware differ, so do not compare scores or tokens/s. Compare the shares of full and the"
    " speedups (x) with care: the gain from skipping depends on the share of a step that reads"
    " weights. x: tokens/s of prompt and generated tokens divided by those of full at the same"
    " batch size, or ours in the timed pairs, whose tokens/s differ from those of the answers and"
    " are left out."
)
NOTE = (
    "Measured: decode seconds of the full model divided by those of the strategy, median of timed"
    " pairs at the smallest batch size. Tok/s: decoded tokens per second in these pairs; full tok/s"
    " is the full model's side. Both sides decode the same prompts to the same number of new"
    " tokens, but early exit and drafts stop at EOS."
)


class Line(NamedTuple):
    """A line of the table."""

    target: float
    approach: str
    records: dict[int, Record]  # by batch size

    @property
    def first(self) -> Record:
        """The finished record with the smallest batch size."""
        records = done(self.records.values()) or self.records.values()
        return min(records, key=lambda record: record.batch_size)

    @property
    def absent(self) -> str:
        """The text of a cell without a value."""
        return self.first.absent


def table4(records: Sequence[Record]) -> list[TableSection]:
    """Arrange records with a target speedup as in table 4: one table per setting, one line per
    target and approach.
    """
    return list(map(_table4, grouped([record for record in records if record.target_speedup])))


def _table4(group: Group) -> TableSection:
    def first(key: str, optional: bool = False) -> Column:
        shown = COLUMNS[key]
        return Column(shown.head, "", lambda line: tables.cell(line.first, shown), optional)

    def rate(line: Line, size: int) -> str:
        shown = Column("", ".0f", lambda record: record.tokens_per_second())
        return tables.cell(line.records[size], shown) if size in line.records else MISSING

    metric = primary(group.records)
    columns = [
        Column("target", "", lambda line: f"{line.target:g}x"),
        Column("approach", "", lambda line: line.approach),
        first("layers"),
        first("timed_layers"),
        *([Column(TITLES[metric], ".2f", lambda line: line.first.value(metric))] if metric else []),
        first("predicted_speedup", True),
        first("measured_speedup"),
    ]
    if any(record.tokens_per_second() is not None for record in group.records):
        full = Column("full\ntok/s", ".0f", lambda line: line.first.tokens_per_second("full"), True)
        sizes = group.batches
        rates = [Column(f"tok/s,\nbatch {size}", "", partial(rate, size=size)) for size in sizes]
        columns += [full, *rates]
    lines = [Line(*point, records) for point, records in group.points().items()]
    return TableSection.of(group.label, lines, columns)


def paper_markdown(sections: Sequence[TableSection]) -> str:
    """Write the tables in Markdown, with headings if there are several."""
    write = tables.with_heading if len(sections) > 1 else tables.markdown
    return "\n\n".join([*map(write, sections), NOTE])


def paper_latex(sections: Sequence[TableSection]) -> str:
    """Write the tables in LaTeX, with the note in the first caption."""
    return "\n".join(
        tables.latex(replace(section, note=NOTE * (i == 1)), f"table4-{i}")
        for i, section in enumerate(sections, start=1)
    )


def write_paper_report(folder: ResultsFolder) -> list[Path]:
    """Write table4.md, plot the quality, and return the files."""
    from ulskip_cli.report.plots import save_quality

    records = [displayed(record, folder.path) for record in folder.records()]
    file = folder.path / "table4.md"
    parts = [
        f"# {tables.title(records)}",
        paper_markdown(table4(records)),
        tables.provenance(records),
    ]
    text = "\n\n".join(parts) + "\n"
    write_atomic(file, tables.escape_markdown(text))
    return [file, *save_quality(grouped(done(records)), folder.path / "quality")]


def beside_paper(groups: Sequence[Group]) -> list[TableSection]:
    """Make one table per timed setting with the paper's and the measured values; the last table's
    note has the caveat.
    """
    timed = [group for group in groups if any(row.total_tokens_per_second for row in group.done)]
    sections = []
    for group in timed:
        title = f"Comparison with the paper{f': {group.label}' if len(groups) > 1 else ''}"
        note = f"Ours: {group.label}." + f" {CAVEAT}" * (group is timed[-1])
        sections.append(_beside(title, group, note))
    return sections


def _beside(title: str, group: Group, note: str) -> TableSection:
    """Make one table with a line for every target, approach and batch size of the paper."""
    (full_bleu, *full_rates), lines = TABLE_4[1, "full"], []
    for (target, approach), (bleu, *rates) in TABLE_4.items():
        for size, rate, full_rate in zip(BATCHES, rates, full_rates, strict=True):
            line = {"target": f"{target:g}x", "approach": approach, "batch": str(size)}
            line |= {"paper\nBLEU": f"{bleu:.2f}", "paper\nof full": f"{bleu / full_bleu:.0%}"}
            line |= {
                "paper\ntok/s": str(rate or "N/A"),
                "paper\nx": f"{rate / full_rate:.2f}" if rate and full_rate else "N/A",
            }
            ours = _ours(group, size, (target, approach))
            if ours or rate:
                lines.append(line | {f"ours\n{key}": text for key, text in ours.items()})
    heads = dict.fromkeys(key for line in lines for key in line)
    if "ours\nof full" not in heads:
        heads.pop("paper\nBLEU", None)
        heads.pop("paper\nof full", None)
    columns = [Column(key, "", methodcaller("get", key)) for key in heads]
    return TableSection.of(title, lines, columns, note)


def _ours(group: Group, size: int, point: tuple[float, str]) -> dict[str, str]:
    """Return the cells of a target and approach at a batch size; empty if no record measured
    them.
    """
    records = [record for record in group.records if record.batch_size == size]
    timed_full = [record.full.total_tokens_per_second for record in records if record.full]
    if point[1] == "full" and timed_full:
        return {"tok/s": f"{median(timed_full):.0f}", "x": "1.00"}
    same = [
        record for record in records if (record.target_speedup, group.approach(record)) == point
    ]
    if not same:
        return {}
    record, metric = same[0], primary(same[:1])
    fulls = [full.total_tokens_per_second for full in records if full.keeps_all]
    rate, times = record.total_tokens_per_second, record.end_to_end_speedup
    full_rate = next(filter(None, fulls), None)
    if record.keeps_all:
        times = 1.0 if rate else None
    elif times is None and rate and full_rate:
        times = rate / full_rate
    is_evaluated = record.pairs is not None and record.throughput_from == "evaluation"
    rates = [] if is_evaluated else [Column("tok/s", ".0f", lambda _: rate)]  # x is of the pairs
    timed = f" with {record.timed_layers} layers" if record.timed_layers else ""
    columns = [*rates, Column("x", "", lambda _: times and f"{times:.2f}{timed}")]
    if metric:
        columns.append(Column(TITLES[metric], ".2f", methodcaller("value", metric)))
    judged = shares(records)
    if record.key in judged:
        columns.append(tables.share_of_full("of full", ".0%", judged))
    return {column.title: tables.cell(record, column) for column in columns}
