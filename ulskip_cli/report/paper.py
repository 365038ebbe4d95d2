"""Arrange measured records in the layout of the paper's table 4, and compare them with the paper's
values.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

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


Line = tuple[
    float, str, dict[int, Record]
]  # a target and an approach with its records by batch size


def table4(records: Sequence[Record]) -> list[Section]:
    """Arrange records with a target speedup as in table 4: one table per setting, one line per
    target and approach.
    """
    return [
        _table4(group)
        for group in grouped([record for record in records if record.target_speedup is not None])
    ]


def _table4(group: Group) -> Section:
    metric = primary(group.records)
    lines = [(target, approach, records) for (target, approach), records in group.points().items()]
    is_timed = any(record.tokens_per_second() is not None for record in group.records)
    rate = Column("", ".0f", lambda record: record.tokens_per_second())
    full_rate = Column("", ".0f", lambda record: record.tokens_per_second("full"))
    shown: list[tuple[Head, Callable[[Line], str]]] = [
        (Head("target"), lambda line: f"{line[0]:g}x"),
        (Head("approach"), lambda line: line[1]),
        (Head("layers"), _of_first("kept_layers", tables.column("kept_layers")[1])),
        *(
            [
                (
                    Head(TITLES[metric]),
                    _of_first(metric, partial(cell, key=metric, column=Column("", ".2f"))),
                )
            ]
            if metric
            else []
        ),
        (Head("predicted", 1), _of_first("", tables.column("predicted_speedup")[1])),
        (Head("measured"), _of_first("", tables.column("measured_speedup")[1])),
    ]
    if is_timed:
        shown.append(
            (Head("full\ntok/s", 2), _of_first("", partial(cell, key="pairs", column=full_rate)))
        )
        shown += [
            (Head(f"tok/s,\nbatch {size}"), partial(_of_batch, size=size, column=rate))
            for size in group.batches
        ]
    return Section.of(group.label, lines, shown)


def _of_first(key: str, show: Callable[[Record], str]) -> Callable[[Line], str]:
    """Make cells for the finished record with the smallest batch size."""

    def text(line: Line) -> str:
        records = done(line[2].values()) or list(line[2].values())
        return show(min(records, key=lambda record: record.batch_size))

    return text


def _of_batch(line: Line, size: int, column: Column) -> str:
    return cell(line[2][size], "pairs", column) if size in line[2] else MISSING


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
    return tables.csv_text(
        lines, list(dict.fromkeys(["setting", *(key for line in lines for key in line)]))
    )


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


def beside_paper(groups: Sequence[Group], gate: float) -> list[Section]:
    """Make one table per timed setting with the paper's and the measured values; the last table's
    note has the caveat.
    """
    made = []
    for group in groups:
        if any(record.total_tokens_per_second for record in group.done):
            title = f"Comparison with the paper{f': {group.label}' if len(groups) > 1 else ''}"
            facts = [record.environment for record in group.done if record.environment]
            machines = dict.fromkeys(
                str(f.accelerator or f"{f.processor}, {f.threads} threads") for f in facts
            )
            note = f"Ours: {group.label}, on {'; '.join(machines) or 'unrecorded hardware'}."
            names = {record.key: group.approach(record) for record in group.records}
            made.append(_beside(title, {"ours": group.records}, names, note))
    return [
        *made[:-1],
        *(replace(section, note=f"{section.note} {CAVEAT}") for section in made[-1:]),
    ]


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
            line: dict[str, Any] = {
                "target": f"{target:g}x",
                "approach": approach,
                "batch": str(size),
            }
            line |= {"paper\nBLEU": f"{bleu:.2f}", "paper\nof full": f"{bleu / full_bleu:.0%}"}
            known = rate is not None and full_rate is not None
            line |= (
                {"paper\ntok/s": f"{rate:.0f}", "paper\nx": f"{rate / full_rate:.2f}"}
                if rate and full_rate
                else NOT_RUN
            )
            for side, records in sides.items():
                line |= _ours(
                    side,
                    [record for record in records if record.batch_size == size],
                    (target, approach),
                    names,
                )
            if any(key.startswith(f"{side}\n") for key in line for side in sides) or known:
                lines.append(line)
    heads = list(dict.fromkeys(key for line in lines for key in line))
    has_scores = any(head.endswith("of full") and not head.startswith("paper") for head in heads)
    heads = [head for head in heads if has_scores or head not in ("paper\nBLEU", "paper\nof full")]
    return Section.of(
        title, lines, [(Head(head), partial(_text, key=head)) for head in heads], note, words=2
    )


def _text(line: Mapping[str, str], key: str) -> str:
    return line.get(key, MISSING)


def _ours(
    side: str,
    records: Sequence[Record],
    point: tuple[float, str],
    names: Mapping[tuple[str, str], str],
) -> dict[str, str]:
    """Return a side's cells for a target and approach at one batch size; empty if no record
    measured them.
    """
    timed_full = [record.full.total_tokens_per_second for record in records if record.full]
    if point[1] == "full" and timed_full:
        return {f"{side}\ntok/s": f"{median(timed_full):.0f}", f"{side}\nx": "1.00"}
    own = next(
        (record for record in records if (record.target_speedup, names[record.key]) == point), None
    )
    if own is None:
        return {}
    fulls = [
        record.total_tokens_per_second
        for record in records
        if record.keeps_all and record.total_tokens_per_second
    ]
    rate, times = own.total_tokens_per_second, own.end_to_end_speedup
    if own.keeps_all:
        times = 1.0 if rate else None
    elif times is None and rate and fulls:
        times = rate / fulls[0]
    cells = {
        "tok/s": None if rate is None else f"{rate:.0f}",
        "x": None if times is None else f"{times:.2f}",
    }
    metric, share = primary([own]), shares(records).get(own.key)
    if metric and own.value(metric) is not None:
        cells |= {TITLES[metric]: f"{own.value(metric):.2f}"}
    if share:
        cells |= {"of full": f"{share.share:.0%}"}
    return {f"{side}\n{key}": text or own.absent for key, text in cells.items()}
