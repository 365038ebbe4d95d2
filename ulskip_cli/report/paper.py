"""Arrange measured rows in the layout of the paper's table 4, and compare them with the paper's values."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

from ulskip_cli.core.files import write_atomic
from ulskip_cli.experiments.record import Row
from ulskip_cli.experiments.results import ResultsFolder
from ulskip_cli.report import tables
from ulskip_cli.report.columns import Cell, Column, Section, computed, layers, number, paired_tokens_per_second, text
from ulskip_cli.report.corrections import strategy_name
from ulskip_cli.report.quality import METRICS, primary, quality
from ulskip_cli.report.rows import MISSING, Group, done, grouped, ordered, point_order, with_settings

BATCHES = (1, 2, 8)
# BLEU on WMT22 (mean of four directions) and tokens/s of prompt and generated tokens at these batch sizes.
# Table 4, arXiv:2404.06954.
TABLE_4: dict[tuple[float, str], tuple[float, int, int | None, int | None]] = {
    (1, "full"): (23.81, 51, 92, 303),
    (2, "early_exit"): (17.82, 73, None, None),
    (2, "skip_decode"): (20.70, 67, 127, 387),
    (2, "unified"): (21.23, 90, 159, 503),
    (5, "early_exit"): (10.02, 167, None, None),
    (5, "skip_decode"): (11.52, 154, 285, 864),
    (5, "unified"): (14.87, 201, 332, 1004),
}
SHAPES = ("bloom-7b1", "bigscience/bloom-7b1", "bigscience/bloomz-7b1", "bigscience/bloomz-7b1-mt")
EXPERIMENT = "paper_throughput"
BENCH_TITLE = "Comparison with the paper's table 4"
BENCH_CAVEAT = (
    "Tok/s: prompt and generated tokens per second. x: the speedup over full, prompt included. The paper ran BLOOMZ-7B on "
    "WMT22 on one A100-80G. Ours are random prompts of one length on other hardware, so compare speedups, not tokens/s. "
    "By the weight bytes of BLOOM-7B1, decoding can speed up by 1.75x at 2x and by 3.16x at 5x. The paper reports more at 5x, "
    "so its full model spent part of each step on other work than reading weights."
)
CAVEAT = (
    "The paper: BLOOMZ-7B on WMT22, mean of four directions, on one A100-80G. Our model, data and hardware differ, so do not "
    "compare scores or tokens/s. Compare the shares of full and the speedups (x) with care: the gain from skipping depends on "
    "the share of a step that reads weights. x: tokens/s of prompt and generated tokens divided by those of full at the same "
    "batch size; ours come from timed pairs if the rows have them."
)
NOTE = (
    "Measured: decode seconds of the full model divided by those of the strategy, median of timed pairs at the smallest batch "
    "size. Tok/s: decoded tokens per second in these pairs; full tok/s is the full model's side. Both sides decode the same "
    "prompts to the same number of new tokens, but early exit and drafts stop at EOS. The long table has the tokens/s of the "
    "evaluated answers, which differ in length."
)


def table4(rows: Sequence[Row]) -> list[Section]:
    """Arrange rows with a target speedup as in table 4: one table per setting, one line per target and approach."""
    groups = grouped([row for row in rows if row.get("target_speedup") is not None])
    return [Section(group.label, _lines(group), _columns(group)) for group in groups]


def _lines(group: Group) -> list[Row]:
    lines = []
    for (target, approach), by_batch in group.points().items():
        first = done(by_batch.values()) or list(by_batch.values())
        line = {**min(first, key=lambda row: row["batch_size"]), "target": f"{target:g}x", "approach": approach}
        lines.append(line | {f"batch_{size}": row for size, row in by_batch.items()})
    return lines


def _columns(group: Group) -> list[Column]:
    metric = primary(group.rows)
    timed = any(paired_tokens_per_second(row) is not None for row in group.rows)
    full_speed = partial(paired_tokens_per_second, side="full")
    return [
        Column("target", text("target"), "target"),
        Column("approach", text("approach"), "approach"),
        Column("layers", layers, "kept_layers"),
        *([Column(METRICS[metric], number(metric), metric)] if metric else []),
        Column("predicted", number("predicted_speedup"), "predicted_speedup", leaves=1),
        Column("measured", number("measured_speedup"), "measured_speedup"),
        *([Column("full\ntok/s", computed(full_speed, ".0f"), "pairs", leaves=2)] if timed else []),
        *(Column(f"tok/s,\nbatch {size}", _batch_speed(size), f"batch_{size}") for size in group.batches if timed),
    ]


def _batch_speed(size: int) -> Cell:
    show, key = computed(paired_tokens_per_second, ".0f"), f"batch_{size}"
    return lambda line: show(line[key]) if key in line else MISSING


def markdown(sections: Sequence[Section]) -> str:
    """Write the tables in Markdown, with headings if there are several."""
    heads = [f"## {one.title}\n\n" if len(sections) > 1 else "" for one in sections]
    parts = [head + tables.markdown(one) for head, one in zip(heads, sections, strict=True)]
    return tables.escape_markdown("\n\n".join([*parts, NOTE]) + "\n")


def to_csv(sections: Sequence[Section]) -> str:
    """Write the tables as one CSV; the first column is the setting, the others are the cells as shown."""
    heads = dict.fromkeys(["setting", *(column.head for one in sections for column in one.columns)])
    lines = [
        {"setting": one.title, **{column.head: cell for column, cell in zip(one.columns, cells, strict=True)}}
        for one in sections
        for cells in one.cells
    ]
    return tables.csv_text(lines, list(heads))


def latex(sections: Sequence[Section]) -> str:
    """Write the tables in LaTeX, with the note in the first caption."""
    noted = [Section(one.title, one.lines, one.columns, NOTE if i == 0 else "") for i, one in enumerate(sections)]
    return "\n".join(tables.latex(one, f"table4-{i}") for i, one in enumerate(noted, start=1))


def write_paper_report(folder: ResultsFolder) -> list[Path]:
    """Write table4.md, plot the quality of the newest row's group at its smallest batch size, and return the files."""
    from ulskip_cli.report.plots import save_quality

    rows = with_settings(folder.rows())
    file, finished = folder.path / "table4.md", done(rows)
    text = f"# {tables.title(rows)}\n\n{markdown(table4(rows))}\n{tables.provenance(rows)}\n"
    write_atomic(file, tables.escape_markdown(text))
    if not finished:
        return [file]
    alike = next(group for group in grouped(finished) if any(row is finished[-1] for row in group.rows))
    drawn = ordered([row for row in alike.rows if row["batch_size"] == alike.batches[0]])
    return [file, *save_quality(drawn, folder.path / "quality", tables.title(drawn))]


def published(target: float, approach: str) -> Row:
    """Return the paper's values for a target and approach, absolute and relative to the full model, or an empty dict."""
    if (target, approach) not in TABLE_4:
        return {}
    (bleu, *speeds), (full_bleu, *full_speeds) = TABLE_4[target, approach], TABLE_4[1, "full"]
    found: Row = {"paper": True, "paper_bleu": bleu, "paper_share": bleu / full_bleu}
    for size, speed, full in zip(BATCHES, speeds, full_speeds, strict=True):
        if speed is not None and full is not None:
            found |= {f"paper_tokens{size}": speed, f"paper_x{size}": speed / full}
    return found


def beside_paper(groups: Sequence[Group], gate: float) -> list[Section]:
    """Make one table per timed setting with the paper's and the measured values; the last table's note has the caveat."""
    timed = [group for group in groups if any(row.get("total_tokens_per_second") for row in done(group.rows))]
    named = [(f"Comparison with the paper{f': {group.label}' if len(groups) > 1 else ''}", group) for group in timed]
    made = [_beside_ours(title, group, gate) for title, group in named]
    return [*made[:-1], *(replace(one, note=f"{one.note} {CAVEAT}") for one in made[-1:])]


def _beside_ours(title: str, group: Group, gate: float) -> Section:
    """Make one table with the paper's and one setting's values, one line per target and approach."""
    metric, judged, ours = primary(group.rows), quality(group, gate), group.points()
    lines = []
    for target, approach in sorted({*TABLE_4, *ours}, key=point_order):
        by_batch = ours.get((target, approach), {})
        line: Row = {"target": f"{target:g}x", "approach": approach, **published(target, approach)}
        if by_batch:
            first = by_batch[min(by_batch)]
            own = judged.get(id(first))
            line |= {"status": first.get("status"), "share": own.share if own else None}
            line |= {"bleu": first.get(metric) if metric else None}
            line |= {f"x{size}": _over_full(row, group) for size, row in by_batch.items()}
            line |= {f"tokens{size}": row.get("total_tokens_per_second") for size, row in by_batch.items()}
        lines.append(line)
    columns = [
        Column("target", text("target"), "target"),
        Column("approach", text("approach"), "approach"),
        Column("paper\nBLEU", _paper("paper_bleu", ".2f"), "paper_bleu"),
        Column(f"ours\n{METRICS[metric or 'bleu']}", number("bleu"), "bleu"),
        Column("paper\nof full", _paper("paper_share", ".0%"), "paper_share"),
        Column("ours\nof full", number("share", ".0%"), "share"),
    ]
    for turn, size in enumerate(BATCHES):
        for head, key, form, leaves in (("x", "x", ".2f", 4 * (turn == 1)), ("tok/s", "tokens", ".0f", 1 + turn)):
            theirs, mine = f"paper_{key}{size}", f"{key}{size}"
            columns.append(Column(f"paper\n{head} b{size}", _paper(theirs, form), theirs, leaves))
            columns.append(Column(f"ours\n{head} b{size}", number(mine, form), theirs, leaves))
    facts = [row["environment"] for row in done(group.rows) if row.get("environment")]
    machines = dict.fromkeys(str(f.get("accelerator") or f"{f.get('processor')}, {f.get('threads')} threads") for f in facts)
    note = f"Ours: {group.label}, on {'; '.join(machines) or 'unrecorded hardware'}."
    return Section(title, lines, columns, note)


def _over_full(row: Row, group: Group) -> float | None:
    if row["strategy"] == "full":
        return 1.0 if row.get("total_tokens_per_second") else None
    if row.get("end_to_end_speedup") is not None:
        return float(row["end_to_end_speedup"])
    fulls = [one for one in group.rows if one["strategy"] == "full" and one["batch_size"] == row["batch_size"]]
    known = [one["total_tokens_per_second"] for one in fulls if one.get("total_tokens_per_second")]
    return row["total_tokens_per_second"] / known[0] if known and row.get("total_tokens_per_second") else None


def _paper(key: str, form: str) -> Cell:
    """Make cells with the paper's value; without one: N/A if the paper has the row's target and approach, else a dash."""
    return lambda line: number(key, form)({key: line.get(key), "status": "n/a" if line.get("paper") else None})


def comparable(rows: Sequence[Row]) -> list[Row]:
    """Select the benchmark rows with the paper's model shape or of the paper's experiment; only these are comparable."""
    return [row for row in rows if row["model"] in SHAPES or row.get("experiment") == EXPERIMENT]


def beside_bench(title: str, rows: Sequence[Row], labels: Sequence[str]) -> Section:
    """Make one table with the paper's and a benchmark's speeds; each label (engine) has two columns."""
    names = list(dict.fromkeys(labels))
    lines = []
    for target, approach in TABLE_4:
        paper = published(target, approach)
        for batch in (size for size in BATCHES if f"paper_x{size}" in paper):
            line = {"target": f"{target:g}x", "approach": approach, "batch": batch}
            line |= {"paper": paper[f"paper_tokens{batch}"], "paper_x": paper[f"paper_x{batch}"]}
            for name in names:
                own = [row for row, label in zip(rows, labels, strict=True) if label == name and row["batch_size"] == batch]
                line |= _ours(own, target, approach, name)
            lines.append(line)
    columns = [Column(key, text(key), key) for key in ("target", "approach", "batch")]
    for key in ("paper", *names):
        columns += [Column(f"{key}\ntok/s", number(key, ".0f"), key), Column("x", number(f"{key}_x"), f"{key}_x")]
    return Section(title, lines, columns, BENCH_CAVEAT, words=1)


def _ours(rows: Sequence[Row], target: float, approach: str, label: str) -> Row:
    """Return the measured tokens/s and speedup of a target and approach, or an empty dict if no row measured them."""
    if approach == "full":
        speeds = [row["full"]["total_tokens_per_second"] for row in rows]
        return {label: median(speeds), f"{label}_x": 1.0} if speeds else {}
    found = next((row for row in rows if (row.get("target_speedup"), strategy_name(row)) == (target, approach)), None)
    return {label: found["total_tokens_per_second"], f"{label}_x": found["end_to_end_speedup"]} if found else {}
