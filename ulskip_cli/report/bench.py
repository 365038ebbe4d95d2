"""What a bench leaves for people: the speed table, where a step's time goes, the paper's figures, a plot."""

from collections.abc import Callable, Sequence
from pathlib import Path

from rich.table import Table

from ulskip_cli.core.files import write_atomic
from ulskip_cli.experiments.record import Row
from ulskip_cli.experiments.results import ResultsFolder
from ulskip_cli.report import published, table
from ulskip_cli.report.columns import Column, interval, layers, number, text, varying
from ulskip_cli.report.plot import measured_against_predicted
from ulskip_cli.report.status import MISSING

FILE = "bench.md"
MEASURED = (
    "measured: full over strategy, decode seconds, median of pairs; of bandwidth: bytes of weights, keys and values that a "
    "step reads, over its time, as a share of what reading memory reaches here:"
)
ACCOUNT = (
    "milliseconds of a decode step: head is the final norm and output head timed alone, layers the slope between full and the "
    "strategy times the layers, other what is left"
)


def _share(key: str) -> Callable[[Row], str]:
    return lambda row: MISSING if row[key] is None else f"{row[key]:.0%}"


def _milliseconds(key: str) -> Callable[[Row], str]:
    def show(row: Row) -> str:
        value = row["account"][key]
        return MISSING if value is None else f"{1000 * value:.3g}"

    return show


SPEED = (
    Column("layers", layers, "kept_layers"),
    Column("target", number("target_speedup", ".4g"), "target_speedup"),
    Column("pre-\ndicted", number("predicted_speedup"), "predicted_speedup"),
    Column("mea-\nsured", number("measured_speedup"), "measured_speedup"),
    Column("95%", interval, "measured_speedup"),
    Column("full\ntok/s", lambda row: f"{row['full']['decode_tokens_per_second']:.0f}", "full"),
    Column("tok/s", number("decode_tokens_per_second", ".0f"), "decode_tokens_per_second"),
    Column("of band-\nwidth", _share("bandwidth_share"), "bandwidth_share"),
)
STEP = (
    Column("layers", layers, "kept_layers"),
    Column("step", _milliseconds("step_seconds"), "account"),
    Column("head", _milliseconds("head_seconds"), "account"),
    Column("layers\ntime", _milliseconds("layers_seconds"), "account"),
    Column("other", _milliseconds("other_seconds"), "account"),
    Column("of band-\nwidth", _share("bandwidth_share"), "bandwidth_share"),
    Column("of\nFLOP/s", _share("flop_share"), "flop_share"),
)
# Beside batch and engine, shown where they vary.
AXES = (
    "model",
    "dtype",
    "strategy",
    "strategy_options",
    "draft_tokens",
    "prompt_layers",
    "timed_prompt_tokens",
    "timed_new_tokens",
)


def terminal(rows: Sequence[Row], width: int) -> list[Table]:
    """The tables for a terminal of that many columns."""
    return [table.fitted(lines, columns, width, title, note, FILE) for title, note, lines, columns in _parts(rows)]


def write_bench_report(folder: ResultsFolder) -> list[Path]:
    """Write bench.md, and speedup.png and .svg, anew from all of a folder's rows that a bench made.

    Returns:
        The files.
    """
    rows = ordered([row for row in folder.rows() if "ceilings" in row])
    parts = [f"## {title}\n\n{table.grid(lines, columns)}\n\n{note}" for title, note, lines, columns in _parts(rows)]
    write_atomic(folder.path / FILE, "\n\n".join([f"# {table.title(rows)}", *parts, table.provenance(rows)]) + "\n")
    labels = [decoded_by(row) for row in rows]
    skipping = [(row, label) for row, label in zip(rows, labels, strict=True) if row["layer_ratio"] > 1]
    drawn = measured_against_predicted(
        [row for row, _ in skipping], folder.path / "speedup", [label for _, label in skipping], table.title(rows)
    )
    return [folder.path / FILE, *drawn]


def ordered(rows: Sequence[Row]) -> list[Row]:
    """By model, batch size and engine, then by depth."""
    return sorted(rows, key=lambda row: (row["model"], row["batch_size"], decoded_by(row), row["layer_ratio"], row["strategy"]))


def decoded_by(row: Row) -> str:
    """The engine, and whether its steps were compiled."""
    return f"{row['engine']}, compiled" if row["compiled"] else str(row["engine"])


def ceilings(rows: Sequence[Row]) -> str:
    """What was measured of every device, dtype and number of threads, in words."""
    lines = {}
    for row in rows:
        where = f"{row['device']}, {row['dtype']}, {row['environment']['threads']} threads"
        read, flops = row["ceilings"]["bytes_per_second"], row["ceilings"]["flops_per_second"]
        lines[where] = f"{read / 1e9:,.1f} GB/s, and {flops / 1e9:,.0f} GFLOP/s in a matrix product ({where})"
    return "; ".join(lines.values())


def _parts(rows: Sequence[Row]) -> list[tuple[str, str, list[Row], list[Column]]]:
    """Title, note, rows and columns of every table."""
    rows = ordered(rows)
    first = [Column("batch", text("batch_size"), "batch_size"), Column("engine", decoded_by, "engine")]
    varied = varying(rows, AXES)
    axes = [*first, *(Column(key.removeprefix("timed_").replace("_", "\n"), text(key), key) for key in varied)]
    parts = [
        (f"Decoding speed: {_what(rows)}", f"{MEASURED} {ceilings(rows)}", rows, [*axes, *SPEED]),
        ("Where the time of a step goes", ACCOUNT, _sides(rows), [*axes, *STEP]),
    ]
    beside = published.comparable(rows)
    if beside:
        lines, columns = published.comparison(beside, [decoded_by(row) for row in beside])
        parts.append((f"{published.TITLE}: {_what(beside)}", published.CAVEAT, lines, columns))
    return parts


def _what(rows: Sequence[Row]) -> str:
    """Lengths and model, where all rows share them."""
    forms = {"model": "{}", "dtype": "{}", "timed_prompt_tokens": "{} prompt tokens", "timed_new_tokens": "{} new tokens"}
    return " · ".join(form.format(rows[0][key]) for key, form in forms.items() if len({row[key] for row in rows}) == 1)


def _sides(rows: Sequence[Row]) -> list[Row]:
    """Both sides of every row, the full one once for a batch size and engine."""
    sides: dict[str, Row] = {}
    for row in sorted(rows, key=lambda row: row["layer_ratio"] == 1):  # the full side of a pair knows its layers' time
        shape = {"kept_layers": range(row["num_layers"]), "later_stages": [], "layer_ratio": 1.0}
        shape |= {"strategy": "full", "strategy_options": {}, "draft_tokens": 0, "prompt_layers": "all"}
        full = {**row, **row["full"], **shape}
        sides.setdefault(str([decoded_by(full), *(full[key] for key in ("batch_size", *AXES))]), full)
        if row["layer_ratio"] > 1:
            sides[row["id"]] = row
    return ordered(list(sides.values()))
