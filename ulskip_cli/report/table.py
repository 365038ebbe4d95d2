"""Rows as tables: the same columns on a terminal, in Markdown and in CSV."""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ulskip_cli.report.status import MISSING as MISSING
from ulskip_cli.report.status import absent, reasons, status
from ulskip_cli.results import ResultsFolder, Row, write_whole


@dataclass(frozen=True)
class Column:
    """One column of a table for people.

    Attributes:
        title: its head; may hold a line break.
        show: the cell of a row.
        needs: the row key that must be there in some row for the column to be shown.
        leaves: its turn to be left out where a terminal is too narrow for all, 1 the first, 0 never; files have it always.
    """

    title: str
    show: Callable[[Row], str]
    needs: str
    leaves: int = 0

    @property
    def head(self) -> str:
        """The title on one line."""
        return self.title.replace("-\n", "").replace("\n", " ")


def number(key: str, form: str = ".2f") -> Callable[[Row], str]:
    """The value under a key."""
    return lambda row: absent(row) if row.get(key) is None else format(row[key], form)


def interval(row: Row) -> str:
    """The 95% interval of the measured speedup."""
    if row.get("measured_speedup") is None:
        return absent(row)
    return f"{row['measured_speedup_low']:.2f}-{row['measured_speedup_high']:.2f}"


def _quality(key: str) -> Callable[[Row], str]:
    """The score, with the significance of its difference to full."""

    def show(row: Row) -> str:
        if row.get(key) is None:
            return absent(row)
        compared = row.get("against_full", {}).get(key)
        enough = row.get("num_examples", LEAST_FOR_STARS) >= LEAST_FOR_STARS
        mark = "*" if compared and enough and compared["p_value"] is not None and compared["p_value"] < 0.05 else ""
        return f"{row[key]:.1f}{mark}"

    return show


def _kv_share(row: Row) -> str:
    total = row.get("prompt_kv_bytes")
    return f"{row['kept_kv_bytes'] / total:.0%}" if total else absent(row)


def layers(row: Row) -> str:
    """Kept layers of all, on average where the number changes from step to step."""
    if row.get("kept_layers") is None:
        return absent(row)
    mean = row.get("mean_kept_layers") if row.get("later_stages") or row.get("exit_depths") else None
    return f"{len(row['kept_layers']) if mean is None else format(mean, '.1f')}/{row['num_layers']}"


COLUMNS = (
    Column("strategy", lambda row: row["strategy"], "strategy"),
    Column("layers", layers, "kept_layers"),
    Column("target", number("target_speedup", ".4g"), "target_speedup"),
    Column("layer\nratio", number("layer_ratio"), "layer_ratio"),
    Column("pre-\ndicted", number("predicted_speedup"), "predicted_speedup"),
    Column("mea-\nsured", number("measured_speedup"), "measured_speedup"),
    Column("95%", interval, "measured_speedup", leaves=15),
    Column("BLEU", _quality("bleu"), "bleu"),
    Column("chrF", _quality("chrf"), "chrf", leaves=13),
    Column("R-1", _quality("rouge1"), "rouge1"),
    Column("R-2", _quality("rouge2"), "rouge2", leaves=11),
    Column("R-L", _quality("rougeL"), "rougeL"),
    Column("R-Lsum", _quality("rougeLsum"), "rougeLsum", leaves=12),
    Column("TER", _quality("ter"), "ter"),
    Column("exact", _quality("exact_match"), "exact_match"),
    Column("COMET", _quality("comet"), "comet"),
    Column("BERT-\nScore", _quality("bertscore"), "bertscore"),
    Column("decode\nloss", number("decode_loss"), "decode_loss"),
    Column("decode\ntok/s", number("decode_tokens_per_second", ".0f"), "decode_tokens_per_second"),
    Column("total\ntok/s", number("total_tokens_per_second", ".0f"), "total_tokens_per_second", leaves=16),
    Column("accept-\nance", number("acceptance_rate"), "acceptance_rate"),
    Column("tokens\na check", number("mean_accepted_length"), "mean_accepted_length", leaves=10),
    Column("KV\nkept", _kv_share, "prompt_kv_bytes", leaves=14),
)
# What tells the rows of one folder apart; shown only where it varies.
AXES = (
    *("model", "task", "pair", "dataset", "strategy_options", "decoding", "draft_tokens", "batch_size"),
    *("prompt_layers", "ratio_basis"),
    *("num_examples", "chat", "engine", "compiled", "timed_prompt_tokens", "timed_new_tokens"),
    *("quantization", "dtype", "device", "seed"),
)
# Axes that follow from others, as a dtype from a model, leave a narrow table before any number does.
_AXES_LEAVE = {key: turn for turn, key in enumerate(("quantization", "engine", "chat", "dtype", "device", "dataset"), start=1)}
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
    *("bleu", "chrf", "ter", "rouge1", "rouge2", "rougeL", "rougeLsum", "exact_match", "comet", "bertscore"),
    *("decode_loss", "acceptance_rate", "mean_accepted_length", "length_ratio", "sources_cut", "evaluated_batch_size"),
    *("device", "dtype", "quantization", "training", "seed", "finished_at"),
)
STARS = "* differs from full (paired bootstrap, p < 0.05)"
LEAST_FOR_STARS = 10  # a bootstrap over fewer examples says nothing
MEASURED = "measured: full over strategy, decode seconds, median of pairs"


def columns_for(rows: Sequence[Row]) -> list[Column]:
    """The columns that have something to say about these rows."""
    axes = [Column(key.replace("_", "\n"), text(key), key, _AXES_LEAVE.get(key, 0)) for key in varying(rows, AXES)]
    shown = [column for column in COLUMNS if any(row.get(column.needs) is not None for row in rows)]
    return [*shown[:1], *axes, *shown[1:], *_harness_columns(rows)]


def _harness_columns(rows: Sequence[Row]) -> list[Column]:
    """The metrics of lm-evaluation-harness, in its own units, each with its standard error where it has one."""

    def cell(key: str) -> Callable[[Row], str]:
        def show(row: Row) -> str:
            scores = row.get("lm_eval") or {}
            name, _, rest = key.partition(" ")
            error = scores.get(f"{name}_stderr {rest}".strip())
            return MISSING if scores.get(key) is None else f"{scores[key]:.4g}" + (f"±{error:.2g}" if error else "")

        return show

    keys = dict.fromkeys(key for row in rows for key in row.get("lm_eval") or {} if "_stderr" not in key)
    return [Column(key.replace("_", "\n", 1), cell(key), "lm_eval") for key in keys]


def varying(rows: Sequence[Row], axes: Sequence[str]) -> list[str]:
    """The axes in which rows differ; options only where one strategy has several sets of them."""
    found = [key for key in axes if len({str(row.get(key)) for row in rows if key in row}) > 1]
    if len({(row["strategy"], str(row.get("strategy_options"))) for row in rows}) == len({row["strategy"] for row in rows}):
        found = [key for key in found if key != "strategy_options"]
    return found


def terminal(rows: Sequence[Row], width: int) -> Table:
    """A table for a terminal of that many columns."""
    return fitted(ordered(rows), columns_for(rows), width, title(rows), footnote(rows), "table.md")


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
        left_out = f"{len(columns) - len(shown)} columns more in {file}"
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
    heads = [column.head for column in columns]
    rule = [*["---"] * words, *["---:"] * (len(heads) - words)]
    lines = [" | ".join(cells) for cells in (heads, rule, *cells_of(rows, columns))]
    return "\n".join(f"| {line} |" for line in lines)


def to_csv(rows: Sequence[Row]) -> str:
    """All flat values, one row a run, under the row keys themselves."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, CSV_KEYS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in ordered(rows):
        writer.writerow({**row, "status": status(row), "kept_layers": " ".join(map(str, row.get("kept_layers") or ()))})
    return stream.getvalue()


def write_tables(folder: ResultsFolder) -> None:
    """Make table.md and table.csv anew from all rows of a folder."""
    rows = folder.rows()
    write_whole(folder.path / "table.md", markdown(rows))
    write_whole(folder.path / "table.csv", to_csv(rows))


def ordered(rows: Sequence[Row]) -> list[Row]:
    """Full first, then by ratio and strategy; a point without a schedule stands where its target is."""
    return sorted(rows, key=_order)


def _order(row: Row) -> tuple[str, str, float, str]:
    ratio = row.get("layer_ratio") or row.get("target_speedup") or 0.0
    return str(row.get("model")), str(row.get("pair")), ratio, row["strategy"]


def title(rows: Sequence[Row]) -> str:
    """What all rows have in common."""
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


def text(key: str) -> Callable[[Row], str]:
    """The words under a key."""

    def show(row: Row) -> str:
        value = row.get(key)
        if isinstance(value, dict):
            return " ".join(str(part) for part in value.values()) or MISSING
        return MISSING if value is None else str(value)

    return show


def footnote(rows: Sequence[Row]) -> str:
    """What is to be known of the marks and columns of a table of rows."""
    notes = [STARS] if any(row.get("against_full") for row in rows) else []
    if any(row.get("measured_speedup") is not None for row in rows):
        notes.append(MEASURED)
    if any(row.get("decode_loss") is None and row.get("measured_speedup") is not None and row.get("task") for row in rows):
        notes.append("no quality: random weights")
    return "; ".join([*notes, *reasons(rows)])
