"""Rows in the layout of the paper's table 4: a line a target and approach, tokens/s by batch size."""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ulskip_cli.experiments.record import Row
from ulskip_cli.report import table
from ulskip_cli.report.columns import Column, layers, number, text
from ulskip_cli.report.gate import METRICS, primary
from ulskip_cli.report.groups import Group, grouped
from ulskip_cli.report.status import MISSING, done

NOTE = (
    "measured: full over strategy in decode seconds, median of pairs, at the smallest batch; tokens/s counts prompt and "
    "generated ids, as the paper does"
)


@dataclass(frozen=True)
class Table4:
    """One table: of rows that differ in nothing but strategy, target and batch size.

    Attributes:
        heading: what the rows share.
        lines: one a target and approach; `batch_N` is the row of that batch size.
        columns: of the table.
    """

    heading: str
    lines: list[Row]
    columns: list[Column]


def tables(rows: Sequence[Row]) -> list[Table4]:
    """One table for every model, task, pair, decoding and other setting among the rows.

    Args:
        rows: any rows; those without a target speedup (a schedule of one's own) are left out.
    """
    groups = grouped([row for row in rows if row.get("target_speedup") is not None])
    return [Table4(group.label, _lines(group), _columns(group)) for group in groups]


def markdown(made: Sequence[Table4]) -> str:
    """All of the tables in Markdown, each under its heading where there are several."""
    heads = [f"## {one.heading}\n\n" if len(made) > 1 else "" for one in made]
    parts = [head + table.grid(one.lines, one.columns, words=2) for head, one in zip(heads, made, strict=True)]
    return "\n\n".join([*parts, NOTE]) + "\n"


def to_csv(made: Sequence[Table4]) -> str:
    """All of the tables as one, its cells as they are shown, what each is of in the first column."""
    heads = dict.fromkeys(["setting", *(column.head for one in made for column in one.columns)])
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(heads), lineterminator="\n")
    writer.writeheader()
    for one in made:
        titles = [column.head for column in one.columns]
        writer.writerows(
            {"setting": one.heading, **dict(zip(titles, cells, strict=True))}
            for cells in table.cells_of(one.lines, one.columns)
        )
    return stream.getvalue()


def _lines(group: Group) -> list[Row]:
    points: dict[tuple[float, str], dict[int, Row]] = {}
    for row in sorted(group.rows, key=_order):
        points.setdefault((row["target_speedup"], group.approach(row)), {})[row["batch_size"]] = row
    lines = []
    for (target, approach), by_batch in points.items():
        answered = {row["batch_size"]: row for row in done(by_batch.values())} or by_batch
        sizes = {f"batch_{size}": row for size, row in by_batch.items()}
        lines.append({**answered[min(answered)], "target": f"{target:g}x", "approach": approach, **sizes})
    return lines


def _columns(group: Group) -> list[Column]:
    metric = primary(group.rows)
    quality = [Column(METRICS[metric], number(metric), metric)] if metric else []
    return [
        Column("target", text("target"), "target"),
        Column("approach", text("approach"), "approach"),
        Column("layers", layers, "kept_layers"),
        *quality,
        Column("predicted", number("predicted_speedup"), "predicted_speedup", leaves=1),
        Column("measured", number("measured_speedup"), "measured_speedup"),
        *(Column(f"tokens/s,\nbatch {size}", _speed(size), f"batch_{size}") for size in group.batches),
    ]


def _speed(size: int) -> Callable[[Row], str]:
    def show(line: Row) -> str:
        row = line.get(f"batch_{size}")
        return MISSING if row is None else number("total_tokens_per_second", ".0f")(row)

    return show


def _order(row: Row) -> tuple[float, bool, str]:
    """By target; unified last, as in the paper."""
    return row["target_speedup"], row["strategy"] == "unified", row["strategy"]
