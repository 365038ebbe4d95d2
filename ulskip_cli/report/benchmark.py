"""Write the report of `ulskip bench`: decoding speed, the paper's values and a plot."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from ulskip_cli.core.files import write_atomic
from ulskip_cli.experiments.record import Row
from ulskip_cli.experiments.results import ResultsFolder
from ulskip_cli.report import paper, tables
from ulskip_cli.report.columns import Column, Section, interval, layers, needed, number, text, varying
from ulskip_cli.report.corrections import correction
from ulskip_cli.report.rows import MISSING, displayed

FILE = "bench.md"
BANDWIDTH = "Of bandwidth: the rate at which a step reads weights, keys and values, as a share of this machine's read bandwidth"
OVER_GENERATE = (
    "Over generate: tok/s divided by those of the full model with engine=transformers at the same batch size and lengths."
)


def _bandwidth_share(row: Row) -> str:
    return MISSING if row.get("bandwidth_share") is None else f"{row['bandwidth_share']:.0%}"


SPEED = (
    Column("layers", layers, "kept_layers"),
    Column("target", number("target_speedup", ".4g"), "target_speedup"),
    Column("pre-\ndicted", number("predicted_speedup"), "predicted_speedup"),
    Column("mea-\nsured", number("measured_speedup"), "measured_speedup"),
    Column("inter-\nval", interval, "measured_speedup"),
    Column("full\ntok/s", lambda row: f"{row['full']['decode_tokens_per_second']:.0f}", "full"),
    Column("tok/s", number("decode_tokens_per_second", ".0f"), "decode_tokens_per_second"),
    Column("over\ngenerate", number("over_generate", ".1f"), "over_generate", leaves=2),
    Column("of band-\nwidth", _bandwidth_share, "bandwidth_share", leaves=1),
)
CORRECTION = Column("correction", lambda row: correction(row).removeprefix(" + ") or MISSING, "strategy")
# Keys that get a column if they vary.
AXES = (
    *("model", "dtype", "strategy", "strategy_options"),
    *("draft_tokens", "prompt_layers", "timed_prompt_tokens", "timed_new_tokens"),
)


def terminal(rows: Sequence[Row], width: int) -> list[Table]:
    """Draw the tables for a terminal of `width` columns."""
    return [tables.draw(section, width, FILE) for section in sections(rows)]


def write_bench_report(folder: ResultsFolder) -> list[Path]:
    """Write bench.md and the plot of speedups from all benchmark rows of a folder; return the files."""
    from ulskip_cli.report.plots import save_predictions

    rows = ordered([row for row in folder.rows() if row.get("machine_limits")])
    title = tables.title(rows)
    parts = [f"## {one.title}\n\n{tables.markdown(one)}\n\n{one.note}" for one in sections(rows)]
    text = "\n\n".join([f"# {title}", *parts, tables.provenance(rows)]) + "\n"
    write_atomic(folder.path / FILE, tables.escape_markdown(text))
    skipping = [row for row in rows if row["layer_ratio"] > 1]
    labels = [decoded_by(row) for row in skipping]
    return [folder.path / FILE, *save_predictions(skipping, folder.path / "speedup", labels, title)]


def ordered(rows: Sequence[Row]) -> list[Row]:
    """Sort rows for display by model, batch size, engine, layer ratio (lowest first) and strategy."""

    def order(row: Row) -> tuple[str, int, str, float, str]:
        return row["model"], row["batch_size"], decoded_by(row), row["layer_ratio"], row["strategy"]

    return sorted(map(displayed, rows), key=order)


def decoded_by(row: Row) -> str:
    """Return the name of the engine, the format of its weights, and `compiled` or `compiled layers`."""
    name = " ".join([str(row["engine"]), *([row["engine_weights"]] if row.get("engine_weights") else [])])
    return f"{name}, compiled{' layers' * bool(row.get('compiled_layers'))}" if row["compiled"] else name


def read_bandwidth(rows: Sequence[Row]) -> str:
    """List the measured bandwidth of every device and number of threads."""
    lines = {}
    for row in rows:
        where = f"{row['device']}, {row['environment']['threads']} threads"
        lines[where] = f"{row['machine_limits']['bytes_per_second'] / 1e9:,.1f} GB/s ({where})"
    return "; ".join(lines.values())


def sections(rows: Sequence[Row]) -> list[Section]:
    """Make the tables of benchmark rows."""
    rows = _over_generate(ordered(rows))
    first = [Column("batch", text("batch_size"), "batch_size"), Column("engine", decoded_by, "engine")]
    varied = varying(rows, AXES)
    axes = [*first, *(Column(key.removeprefix("timed_").replace("_", "\n"), text(key), key) for key in varied)]
    if len({correction(row) for row in rows}) > 1:
        axes.append(CORRECTION)
    over = [OVER_GENERATE] if any(row["over_generate"] for row in rows) else []
    measured = tables.sentences(
        [*fastest(rows), tables.MEASURED, *over, *tables.interval_notes(rows), f"{BANDWIDTH}: {read_bandwidth(rows)}"]
    )
    found = [
        Section(f"Decoding speed: {_shared(rows)}", rows, [*axes, *needed(SPEED, rows)], measured, words=1),
    ]
    beside = paper.comparable(rows)
    if beside:
        title = f"{paper.BENCH_TITLE}: {_shared(beside)}"
        found.append(paper.beside_bench(title, beside, [decoded_by(row) for row in beside]))
    return found


def fastest(rows: Sequence[Row]) -> list[str]:
    """Name the engine that is fastest with all layers at each batch size; empty unless engines of one model compare."""
    timed = [row for row in rows if row.get("full")]
    if len({decoded_by(row) for row in timed}) < 2 or varying(timed, ("model", *AXES)):
        return []
    parts = []
    for batch in sorted({row["batch_size"] for row in timed}):
        same = [row for row in timed if row["batch_size"] == batch]
        best = decoded_by(max(same, key=lambda row: row["full"]["decode_tokens_per_second"]))
        row = max((row for row in same if decoded_by(row) == best), key=lambda row: row["decode_tokens_per_second"])
        rates = row["full"]["decode_tokens_per_second"], row["decode_tokens_per_second"]
        parts.append(f"{best} at batch {batch} ({rates[0]:.0f} tok/s, {rates[1]:.0f} with {layers(row)} layers)")
    return [f"Fastest with all layers: {', '.join(parts)}."]


def _over_generate(rows: Sequence[Row]) -> list[Row]:
    """Add each row's tokens/s relative to generate's at full depth, if it was timed at the same point on the same machine."""

    def point(row: Row) -> tuple[Any, ...]:
        keys = ("model", "dtype", "quantization", "batch_size", "timed_prompt_tokens", "timed_new_tokens", "device")
        machine = row.get("environment") or {}
        return *(row.get(key) for key in keys), *(machine.get(key) for key in ("processor", "accelerator", "threads"))

    timed = [row for row in rows if row["engine"] == "transformers" and row.get("full")]
    base = {point(row): row["full"]["decode_tokens_per_second"] for row in timed}
    found = [(row, base.get(point(row))) for row in rows]
    return [{**row, "over_generate": row["decode_tokens_per_second"] / rate if rate else None} for row, rate in found]


def _shared(rows: Sequence[Row]) -> str:
    """Name the model, dtype and lengths that all rows share."""
    forms = {"model": "{}", "dtype": "{}", "timed_prompt_tokens": "{} prompt tokens", "timed_new_tokens": "{} new tokens"}
    return " · ".join(form.format(rows[0][key]) for key, form in forms.items() if len({row[key] for row in rows}) == 1)
