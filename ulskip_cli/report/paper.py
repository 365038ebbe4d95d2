"""Records in the layout of the paper's table 4, and beside the paper's values."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ulskip_cli.experiments.record import Record
from ulskip_cli.experiments.results import ResultsFolder
from ulskip_cli.experiments.statistics import primary
from ulskip_cli.report import tables
from ulskip_cli.report.columns import (
    COLUMNS,
    DECODE_RATE,
    MISSING,
    STRATEGY,
    Column,
    first_columns,
    quality_share,
    timed_layers,
)
from ulskip_cli.report.pairs import POINT, ComparedPair, beside
from ulskip_cli.report.rows import Group, done, grouped, read_records, stored
from ulskip_cli.report.tables import TableSection

# The paper's values as rows: BLEU on WMT22 (mean of four directions), tokens/s of prompt and
# generated tokens, and their ratio to those of full. Table 4, arXiv:2404.06954.
PAPER = Path(__file__).parent.parent / "assets" / "paper"
CAVEAT = (
    "The paper: BLOOMZ-7B on WMT22, mean of four directions, on one A100-80G. Our model, data and"
    " hardware differ, so do not compare scores or tokens/s. Compare the shares of full and the"
    " speedups (x) with care: the gain from skipping depends on the share of a step that reads"
    " weights. x: tokens/s of prompt and generated tokens divided by those of full at the same"
    " batch size; ours in the timed pairs."
)
NOTE = (
    "Measured: decode seconds of the full model divided by those of the strategy, in timed pairs"
    " at the smallest batch size. Tok/s: decoded tokens per second in these pairs; full tok/s"
    " is the full model's side. Both sides decode the same prompts to the same number of new"
    " tokens, but early exit and drafts stop at EOS."
)


def table4(records: Sequence[Record]) -> list[TableSection]:
    """Make one table per setting, with a line per target and approach."""
    return list(map(_table4, grouped([record for record in records if record.target_speedup])))


def _table4(group: Group) -> TableSection:
    """Make the table of a group: a line shows the finished record of the smallest batch, and the
    tokens/s of all batches.
    """
    points, metric = group.points(), primary(group.records)

    def rate(line: Record, size: int) -> str:
        record = points[line.target_speedup or 0.0, group.approach(line)].get(size)
        return tables.cell(record, DECODE_RATE) if record else MISSING

    shown = first_columns({metric} if metric else ())
    columns = [
        Column("target", lambda record: f"{record.target_speedup:g}x"),
        Column("approach", group.approach),
        *(column for column in shown if column not in (STRATEGY, DECODE_RATE)),
        *tables.harness_columns(group.records),
        *(Column(f"tok/s,\nbatch {size}", partial(rate, size=size)) for size in group.batches),
    ]
    lines = []
    for by_size in points.values():
        candidates = done(by_size.values()) or by_size.values()
        lines.append(min(candidates, key=lambda record: record.batch_size))
    return TableSection.of(group.label, lines, columns, words=2)


def paper_markdown(sections: Sequence[TableSection]) -> str:
    """Write the tables in Markdown, with headings if there are several."""
    write = tables.with_heading if len(sections) > 1 else tables.markdown
    return "\n\n".join([*map(write, sections), NOTE])


def write_paper_report(folder: ResultsFolder) -> None:
    """Write table4.md, and plot the quality."""
    from ulskip_cli.report.plots import save_quality

    records = stored(folder)
    parts = [paper_markdown(table4(records))]
    tables.write_markdown(folder.path / "table4.md", records, parts)
    save_quality(grouped(done(records)), folder.path / "quality")


def beside_paper(groups: Sequence[Group]) -> list[TableSection]:
    """Make one table per setting with the paper's values and ours."""
    published, sections = read_records([PAPER]), list[TableSection]()

    def share_of_full(record: Record) -> float | None:
        if record.folder != str(PAPER):
            return quality_share(record)
        full_bleu: float = published[0].value("bleu")  # the first published row is the full model
        return float(record.value("bleu")) / full_bleu

    for group in groups:
        pairs = _pairs(group, published)
        if not pairs:
            continue
        metric = primary(group.records)
        compared = [
            *(column for column in COLUMNS if column.metric == metric),
            Column("of\nfull", share_of_full, ".0%"),
            Column("tok/s", _rate, ".0f"),
            Column("x", "end_to_end_speedup", ".2f"),
        ]
        columns = [*POINT]
        for column in compared:
            columns += beside(column, "paper", "ours")
        columns.append(Column("timed\nlayers", lambda pair: timed_layers(pair.new)))
        title = f"Comparison with the paper: {group.label}"
        note = "" if sections else CAVEAT  # below the first table alone
        sections.append(TableSection.of(title, pairs, columns, note))
    return sections


def _pairs(group: Group, published: Sequence[Record]) -> list[ComparedPair]:
    """Pair each published row with the group's row of the same target, strategy and batch size."""
    points, pairs = group.points(), []
    for row in published:
        by_size = points.get((row.target_speedup or 0.0, row.label), {})
        if row.batch_size in by_size:
            pairs.append(ComparedPair(new=by_size[row.batch_size], old=row))
    return pairs


def _rate(record: Record) -> float | None:
    """Return the tokens/s of the timed pairs, to which the speedup belongs."""
    return None if record.throughput_from == "evaluation" else record.total_tokens_per_second
