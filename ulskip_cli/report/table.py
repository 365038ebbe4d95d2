"""Rows as tables: the same columns on a terminal, in Markdown and in CSV."""

import csv
import io
from collections.abc import Sequence
from typing import Any, Literal

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ulskip_cli.core.files import write_atomic
from ulskip_cli.experiments.record import Row
from ulskip_cli.experiments.results import ResultsFolder
from ulskip_cli.report import settings
from ulskip_cli.report.columns import AXES, LEAST_FOR_STARS, Column, columns_for
from ulskip_cli.report.status import done, reasons, status
from ulskip_cli.tasks.metrics import metric_keys

LONGEST_CELL = 24
TITLE = ("model", "task", "pair", "dataset", "decoding")
CSV_KEYS = (
    *("id", "experiment", "status", "reason", *AXES, "strategy", "num_layers", "kept_layers"),
    *(
        "target_speedup",
        "layer_ratio",
        "predicted_speedup",
        "measured_speedup",
        "measured_speedup_low",
        "measured_speedup_high",
    ),
    *("end_to_end_speedup", "decode_tokens_per_second", "total_tokens_per_second", "prefill_seconds"),
    *("time_to_first_token_seconds", "time_per_output_token_seconds", "prompt_kv_bytes", "kept_kv_bytes", "peak_memory_bytes"),
    *metric_keys(),
    *("decode_loss", "acceptance_rate", "mean_accepted_length", "length_ratio", "sources_cut", "evaluated_batch_size"),
    *("device", "dtype", "quantization", "training", "seed", "finished_at"),
)
STARS = "* differs from full (paired bootstrap, p < 0.05)"
MEASURED = "measured: full over strategy, decode seconds, median of pairs"


def terminal(rows: Sequence[Row], width: int) -> Table:
    """A table for a terminal of that many columns."""
    rows = ordered(settings.told(rows))
    return fitted(rows, columns_for(rows), width, title(rows), footnote(rows), "table.md")


def fitted(
    rows: Sequence[Row],
    columns: Sequence[Column],
    width: int,
    heading: str,
    note: str,
    file: str,
    words: int = 1,
) -> Table:
    """Rows as a table for a terminal; columns that do not fit are left out, the least important first.

    Args:
        rows: in the order that they are shown in.
        columns: of the table.
        width: of the terminal.
        heading: above the table.
        note: below it.
        file: that has all columns.
        words: how many of the first columns are words and stand left.
    """
    shown, roomy, notes = list(columns), width >= 100, [note] if note else []
    table = _drawn(rows, shown, heading, notes, roomy, words)
    while _width(table) > width and any(column.leaves for column in shown):
        shown.remove(min((column for column in shown if column.leaves), key=lambda column: column.leaves))
        missing = len(columns) - len(shown)
        left_out = f"{missing} column{'s' * (missing > 1)} more in {file}"
        table = _drawn(rows, shown, heading, [*notes, left_out], roomy, words)
    return table


def _drawn(
    rows: Sequence[Row],
    columns: Sequence[Column],
    heading: str,
    notes: Sequence[str],
    roomy: bool,
    words: int,
) -> Table:
    table = Table(title=escape(heading), caption=escape("; ".join(notes)), title_style="bold", box=SIMPLE_HEAD)
    table.padding = (0, int(roomy), 0, 0)
    table.title_justify = table.caption_justify = "left"
    for i, column in enumerate(columns):
        side: Literal["left", "right"] = "left" if i < words else "right"
        table.add_column(column.title, justify=side, no_wrap=True)
    for cells in cells_of(rows, columns):
        short = (cell if len(cell) <= LONGEST_CELL else f"…{cell[1 - LONGEST_CELL :]}" for cell in cells)
        table.add_row(*map(escape, short))
    return table


def _width(table: Table) -> int:
    console = Console(width=10_000)
    return console.measure(table).maximum


def markdown(rows: Sequence[Row]) -> str:
    """The same table in Markdown, with where its numbers come from."""
    body = grid(ordered(rows), columns_for(rows))
    return f"# {title(rows)}\n\n{body}\n\n{footnote(rows)}\n\n{provenance(rows)}\n"


def grid(rows: Sequence[Row], columns: Sequence[Column], words: int = 1) -> str:
    """Rows, in their order, as a table in Markdown, whose first columns are words and the others numbers."""
    return piped(cells_of(rows, columns), columns, words)


def piped(cells: Sequence[Sequence[str]], columns: Sequence[Column], words: int = 1) -> str:
    """Cells, a list a line, as a table in Markdown."""
    heads = [column.head for column in columns]
    rule = [*["---"] * words, *["---:"] * (len(heads) - words)]
    lines = [" | ".join(line) for line in (heads, rule, *cells)]
    return "\n".join(f"| {line} |" for line in lines)


def to_csv(rows: Sequence[Row]) -> str:
    """All plain values, one row a run, under the row keys themselves."""
    plain = (key for row in rows for key, value in row.items() if isinstance(value, (str, int, float)))
    keys = list(dict.fromkeys((*CSV_KEYS, *plain)))
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(keys)
    for row in ordered(rows):
        flat = {**row, "status": status(row), "kept_layers": " ".join(map(str, row.get("kept_layers") or ()))}
        writer.writerow(map(flat.get, keys))
    return stream.getvalue()


def write_tables(folder: ResultsFolder) -> None:
    """Make table.md and table.csv anew from all rows of a folder."""
    rows = settings.told(folder.rows())
    write_atomic(folder.path / "table.md", markdown(rows))
    write_atomic(folder.path / "table.csv", to_csv(rows))


def ordered(rows: Sequence[Row]) -> list[Row]:
    """Full first, then by target, or where there is none by layer ratio, and strategy."""
    return sorted(rows, key=_order)


def _order(row: Row) -> tuple[str, str, float, str]:
    ratio = row.get("target_speedup") or row.get("layer_ratio") or 0.0
    return str(row.get("model")), str(row.get("pair")), ratio, row["strategy"]


def title(rows: Sequence[Row]) -> str:
    """What all rows have in common, of those that came to something if any did."""
    rows = done(rows) or rows
    common = [str(values.pop()) for key in TITLE if len(values := {row.get(key) for row in rows}) == 1 and None not in values]
    sizes = {"batch {}": "batch_size", "{} examples": "num_examples"}
    same = [
        form.format(rows[0][key])
        for form, key in sizes.items()
        if len({row.get(key) for row in rows}) == 1 and rows[0].get(key)
    ]
    return " · ".join([*common, *same])


def provenance(rows: Sequence[Row]) -> str:
    """One line on code, machine and weights for every kind of run among the rows."""
    return "  \n".join(dict.fromkeys(_provenance(row) for row in ordered(rows) if row.get("environment")))


def _provenance(row: Row) -> str:
    facts: dict[str, Any] = row["environment"]
    packages = facts["packages"]
    commit = (facts.get("git_commit") or "no commit")[:10] + (" (modified)" if facts.get("git_dirty") else "")
    processor = facts["accelerator"] or f"{facts['processor']}, {facts['threads']} threads, {facts['instruction_set']}"
    versions = f"ulskip {facts['ulskip']} at {commit}, torch {packages['torch']}, transformers {packages['transformers']}"
    return f"{versions}; {processor}, {row.get('dtype')}; weights of {row['model']} trained {row.get('training')}."


def cells_of(rows: Sequence[Row], columns: Sequence[Column]) -> list[list[str]]:
    """What stands in every cell, a list a row."""
    return [[column.show(row) for column in columns] for row in rows]


def footnote(rows: Sequence[Row]) -> str:
    """What is to be known of the marks and columns of a table of rows."""
    judged = [row for row in rows if row.get("against_full")]
    few = [row for row in judged if 0 < row.get("num_examples", LEAST_FOR_STARS) < LEAST_FOR_STARS]
    notes = [STARS] if len(few) < len(judged) else []
    if few:
        notes.append(f"fewer than {LEAST_FOR_STARS} examples are too few for *")
    if any(row.get("measured_speedup") is not None for row in rows):
        notes.append(MEASURED)
    if any(row.get("decode_loss") is None and row.get("measured_speedup") is not None and row.get("task") for row in rows):
        notes.append("no quality: random weights")
    return "; ".join([*notes, *reasons(rows)])
