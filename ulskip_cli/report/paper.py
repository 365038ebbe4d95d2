"""Arrange measured records in the layout of the paper's table 4, and compare them with the paper's
values.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

from ulskip_cli.core.files import write_atomic
from ulskip_cli.experiments.record import MISSING, Column, Record, cell
from ulskip_cli.experiments.results import ResultsFolder
from ulskip_cli.experiments.statistics import TITLES, primary, shares
from ulskip_cli.report import tables
from ulskip_cli.report.rows import Group, displayed, done, grouped, ordered
from ulskip_cli.report.tables import Head, Section

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
NOT_RUN = {"paper\ntok/s": "N/A", "paper\nx": "N/A"}
SHAPES = ("bloom-7b1", "bigscience/bloom-7b1", "bigscience/bloomz-7b1", "bigscience/bloomz-7b1-mt")
EXPERIMENT = "paper_throughput"
BENCH_TITLE = "Comparison with the paper's table 4"
BENCH_CAVEAT = (
    "Tok/s: prompt and generated tokens per second. x: the speedup over full, prompt included. The"
    " paper ran BLOOMZ-7B on WMT22 on one A100-80G. Ours are random prompts of one length on other"
    " hardware, so compare speedups, not tokens/s. By the weight bytes of BLOOM-7B1, decoding can"
    " speed up by 1.75x at 2x and by 3.16x at 5x. The paper reports more at 5x, so its full model"
    " spent part of each step on other work than reading weights."
)
CAVEAT = (
    "The paper: BLOOMZ-7B on WMT22, mean of four directions, on one A100-80G. Our model, data and"
    " hardware differ, so do not compare scores or tokens/s. Compare the shares of full and the"
    " speedups (x) with care: the gain from skipping depends on the share of a step that reads"
    " weights. x: tokens/s of prompt and generated tokens divided by those of full at the same"
    " batch size; ours come from timed pairs if the rows have them."
)
NOTE = (
    "Measured: decode seconds of the full model divided by those of the strategy, median of timed"
    " pairs at the smallest batch size. Tok/s: decoded tokens per second in these pairs; full tok/s"
    " is the full model's side. Both sides decode the same prompts to the same number of new"
    " tokens, but early exit and drafts stop at EOS. The long table has the tokens/s of the"
    " evaluated answers, which differ in length."
)


# A target and an approach with its records by batch size.
Line = tuple[float, str, dict[int, Record]]
Cell = tuple[Head, Callable[[Line], str]]


def table4(records: Sequence[Record]) -> list[Section]:
    """Arrange records with a target speedup as in table 4: one table per setting, one line per
    target and approach.
    """
    return list(map(_table4, grouped([record for record in records if record.target_speedup])))


def _table4(group: Group) -> Section:
    def first(key: str, column: Column | None = None, title: str = "", leaves: int = 0) -> Cell:
        """Show the finished record with the smallest batch size."""
        head, show = tables.column(key) if column is None else tables.shown(key, column)

        def text(line: Line) -> str:
            records = done(line[2].values()) or line[2].values()
            return show(min(records, key=lambda record: record.batch_size))

        return Head(title or head.text, leaves), text

    def of_batch(line: Line, size: int) -> str:
        return cell(line[2][size], "pairs", rate) if size in line[2] else MISSING

    metric = primary(group.records)
    rate = Column("", ".0f", lambda record: record.tokens_per_second())
    full_rate = Column("", ".0f", lambda record: record.tokens_per_second("full"))
    shown: list[Cell] = [
        (Head("target"), lambda line: f"{line[0]:g}x"),
        (Head("approach"), lambda line: line[1]),
        first("kept_layers"),
        *([first(metric, Column(TITLES[metric], ".2f"))] if metric else []),
        first("predicted_speedup", leaves=1),
        first("measured_speedup"),
    ]
    if any(record.tokens_per_second() is not None for record in group.records):
        shown.append(first("pairs", full_rate, "full\ntok/s", 2))
        for size in group.batches:
            shown.append((Head(f"tok/s,\nbatch {size}"), partial(of_batch, size=size)))
    lines = [(target, approach, records) for (target, approach), records in group.points().items()]
    return Section.of(group.label, lines, shown)


def markdown(sections: Sequence[Section]) -> str:
    """Write the tables in Markdown, with headings if there are several."""
    heads = [f"## {section.title}\n\n" if len(sections) > 1 else "" for section in sections]
    parts = [head + tables.markdown(section) for head, section in zip(heads, sections, strict=True)]
    return tables.escape_markdown("\n\n".join([*parts, NOTE]) + "\n")


def to_csv(sections: Sequence[Section]) -> str:
    """Write the tables as one CSV; the first column is the setting, the others are the cells as
    shown.
    """
    lines = [{"setting": section.title, **line} for section in sections for line in section.lines()]
    heads = dict.fromkeys(["setting", *(head for line in lines for head in line)])
    return tables.csv_text(lines, list(heads))


def latex(sections: Sequence[Section]) -> str:
    """Write the tables in LaTeX, with the note in the first caption."""
    noted = [replace(section, note=NOTE if i == 0 else "") for i, section in enumerate(sections)]
    return "\n".join(
        tables.latex(section, f"table4-{i}") for i, section in enumerate(noted, start=1)
    )


def write_paper_report(folder: ResultsFolder) -> list[Path]:
    """Write table4.md, plot the quality of the newest record's group at its smallest batch size,
    and return the files.
    """
    from ulskip_cli.report.plots import save_quality

    records = [displayed(record, folder.path) for record in folder.records()]
    file, finished = folder.path / "table4.md", done(records)
    text = (
        f"# {tables.title(records)}\n\n{markdown(table4(records))}\n{tables.provenance(records)}\n"
    )
    write_atomic(file, tables.escape_markdown(text))
    if not finished:
        return [file]
    alike = next(
        group
        for group in grouped(finished)
        if any(record is finished[-1] for record in group.records)
    )
    drawn = ordered([record for record in alike.records if record.batch_size == alike.batches[0]])
    return [file, *save_quality(drawn, folder.path / "quality", tables.title(drawn))]


def beside_paper(groups: Sequence[Group]) -> list[Section]:
    """Make one table per timed setting with the paper's and the measured values; the last table's
    note has the caveat.
    """
    timed = [group for group in groups if any(row.total_tokens_per_second for row in group.done)]
    sections = []
    for group in timed:
        title = f"Comparison with the paper{f': {group.label}' if len(groups) > 1 else ''}"
        facts = [record.environment for record in group.done if record.environment]
        machines = dict.fromkeys(
            fact.accelerator or f"{fact.processor}, {fact.threads} threads" for fact in facts
        )
        note = f"Ours: {group.label}, on {'; '.join(machines) or 'unrecorded hardware'}."
        names = {record.key: group.approach(record) for record in group.records}
        note += f" {CAVEAT}" * (group is timed[-1])
        sections.append(_beside(title, {"ours": group.records}, names, note))
    return sections


def comparable(records: Sequence[Record]) -> list[Record]:
    """Select the benchmark records with the paper's model shape or of the paper's experiment; only
    these are comparable.
    """
    return [
        record for record in records if record.model in SHAPES or record.experiment == EXPERIMENT
    ]


def beside_bench(title: str, records: Sequence[Record], labels: Sequence[str]) -> Section:
    """Make one table with the paper's and a benchmark's speeds; each label (engine) has two
    columns.
    """
    sides: dict[str, list[Record]] = {}
    for record, label in zip(records, labels, strict=True):
        sides.setdefault(label, []).append(record)
    return _beside(
        title, sides, {record.key: record.strategy_name for record in records}, BENCH_CAVEAT
    )


def _beside(
    title: str,
    sides: Mapping[str, Sequence[Record]],
    names: Mapping[tuple[str, str], str],
    note: str,
) -> Section:
    """Make one table with a line for every target, approach and batch size of the paper, and
    columns for every side.
    """
    (full_bleu, *full_rates), lines = TABLE_4[1, "full"], []
    for (target, approach), (bleu, *rates) in TABLE_4.items():
        for size, rate, full_rate in zip(BATCHES, rates, full_rates, strict=True):
            line = {"target": f"{target:g}x", "approach": approach, "batch": str(size)}
            line |= {"paper\nBLEU": f"{bleu:.2f}", "paper\nof full": f"{bleu / full_bleu:.0%}"}
            line |= NOT_RUN
            if rate and full_rate:
                line |= {"paper\ntok/s": str(rate), "paper\nx": f"{rate / full_rate:.2f}"}
            ours: dict[str, str] = {}
            for side, records in sides.items():
                same = [record for record in records if record.batch_size == size]
                cells = _ours(same, (target, approach), names)
                ours |= {f"{side}\n{key}": text for key, text in cells.items()}
            if ours or rate:
                lines.append(line | ours)
    heads = dict.fromkeys(key for line in lines for key in line)
    if not any(f"{side}\nof full" in heads for side in sides):
        heads.pop("paper\nBLEU", None)
        heads.pop("paper\nof full", None)

    def text(line: Mapping[str, str], key: str) -> str:
        return line.get(key, MISSING)

    return Section.of(title, lines, [(Head(key), partial(text, key=key)) for key in heads], note)


def _ours(
    records: Sequence[Record], point: tuple[float, str], names: Mapping[tuple[str, str], str]
) -> dict[str, str]:
    """Return the cells of one side for a target and approach among records of one batch size;
    empty if no record measured them.
    """
    timed_full = [record.full.total_tokens_per_second for record in records if record.full]
    if point[1] == "full" and timed_full:
        return {"tok/s": f"{median(timed_full):.0f}", "x": "1.00"}
    named = {(record.target_speedup, names[record.key]): record for record in reversed(records)}
    record = named.get(point)
    if record is None:
        return {}
    fulls = [full.total_tokens_per_second for full in records if full.keeps_all]
    rate, times = record.total_tokens_per_second, record.end_to_end_speedup
    full_rate = next(filter(None, fulls), None)
    if record.keeps_all:
        times = 1.0 if rate else None
    elif times is None and rate and full_rate:
        times = rate / full_rate
    metric, share = primary([record]), shares(records).get(record.key)
    values = {
        "tok/s": (rate, ".0f"),
        "x": (times, ".2f"),
        **({TITLES[metric]: (record.value(metric), ".2f")} if metric else {}),
        **({"of full": (share.share, ".0%")} if share else {}),
    }
    return {
        key: record.absent if value is None else format(value, form)
        for key, (value, form) in values.items()
    }
