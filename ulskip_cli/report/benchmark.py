"""Write the report of `ulskip bench`: decoding speed, the paper's values and a plot."""

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from ulskip_cli.core.files import write_atomic
from ulskip_cli.experiments.record import MISSING, Record, columns
from ulskip_cli.experiments.results import ResultsFolder
from ulskip_cli.experiments.statistics import sentence
from ulskip_cli.report import paper, tables
from ulskip_cli.report.rows import displayed, varying
from ulskip_cli.report.tables import Head, Section, column

FILE = "bench.md"
BANDWIDTH = (
    "Of bandwidth: the rate at which a step reads weights, keys and values, as a share of this"
    " machine's read bandwidth"
)
OVER_GENERATE = (
    "Over generate: tok/s divided by those of the full model with engine=transformers at the same"
    " batch size and lengths."
)


def terminal(records: Sequence[Record], width: int) -> list[Table]:
    """Draw the tables for a terminal of `width` columns."""
    return [tables.draw(section, width, FILE) for section in sections(records)]


def lead(records: Sequence[Record]) -> list[str]:
    """Return the result in sentences: the fastest engine, and the point with the largest
    speedup.
    """
    skipping = [record for record in records if not record.keeps_all and record.speedup] or list(
        records
    )
    return [
        *fastest(records),
        sentence(max(skipping, key=lambda record: record.measured_speedup or 0.0)),
    ]


def write_bench_report(folder: ResultsFolder) -> list[Path]:
    """Write bench.md and the plot of speedups from all benchmark records of a folder; return the
    files.
    """
    from ulskip_cli.report.plots import save_predictions

    records = ordered(
        [displayed(record, folder.path) for record in folder.records() if record.machine_limits]
    )
    title = tables.title(records)
    parts = [
        f"## {section.title}\n\n{tables.markdown(section)}\n\n{section.note}"
        for section in sections(records)
    ]
    text = "\n\n".join([f"# {title}", *parts, tables.provenance(records)]) + "\n"
    write_atomic(folder.path / FILE, tables.escape_markdown(text))
    skipping = [record for record in records if (record.layer_ratio or 1) > 1]
    labels = list(map(decoded_by, skipping))
    return [folder.path / FILE, *save_predictions(skipping, folder.path / "speedup", labels, title)]


def ordered(records: Sequence[Record]) -> list[Record]:
    """Sort records for display by model, batch size, engine, layer ratio (lowest first) and
    strategy.
    """

    def order(record: Record) -> tuple[str, int, str, float, str]:
        return (
            str(record.model),
            record.batch_size,
            decoded_by(record),
            record.layer_ratio or 1.0,
            record.strategy,
        )

    return sorted(records, key=order)


def decoded_by(record: Record) -> str:
    """Return the name of the engine, the format of its weights, and `compiled` or `compiled
    layers`.
    """
    name = " ".join(filter(None, [record.engine, record.engine_weights]))
    return (
        f"{name}, compiled{' layers' * bool(record.compiled_layers)}" if record.compiled else name
    )


def sections(records: Sequence[Record]) -> list[Section]:
    """Make the tables of benchmark records."""
    records = ordered(records)
    over = _over_generate(records)
    shown = ("batch_size", "engine", "engine_weights")
    settings = varying(records, but=[*shown, "engine", "ratio", "folder"])
    table = [
        (Head("batch"), lambda record: str(record.batch_size)),
        (Head("engine"), decoded_by),
        *([column("strategy")] if len({record.label for record in records}) > 1 else []),
        *(
            tables.setting(key)
            for key in settings
            if not key.startswith(("strategy.name", "correction."))
        ),
        column("kept_layers"),
        column("target_speedup"),
        column("predicted_speedup"),
        *(
            tables.shown("measured_speedup", definition)
            for key, definition in columns()
            if key == "measured_speedup"
        ),
        (
            Head("full\ntok/s"),
            lambda record: (
                f"{record.full.decode_tokens_per_second:.0f}" if record.full else MISSING
            ),
        ),
        column("decode_tokens_per_second", "tok/s"),
        (
            Head("over\ngenerate", 2),
            lambda record: f"{over[record.id]:.1f}" if record.id in over else MISSING,
        ),
        (
            Head("of band-\nwidth", 1),
            lambda record: f"{record.bandwidth_share:.0%}" if record.bandwidth_share else MISSING,
        ),
    ]
    notes = [
        *fastest(records),
        tables.MEASURED,
        *([OVER_GENERATE] if over else []),
        *tables.interval_notes(records),
    ]
    title, note = (
        f"Decoding speed: {_shared(records)}",
        tables.sentences([*notes, f"{BANDWIDTH}: {read_bandwidth(records)}"]),
    )
    parts = [Section.of(title, records, table, note, words=1)]
    if beside := paper.comparable(records):
        title = f"{paper.BENCH_TITLE}: {_shared(beside)}"
        parts.append(paper.beside_bench(title, beside, list(map(decoded_by, beside))))
    return parts


def read_bandwidth(records: Sequence[Record]) -> str:
    """List the measured bandwidth of every device and number of threads."""
    lines = {}
    for record in records:
        if record.machine_limits and record.environment:
            where = f"{record.device}, {record.environment.threads} threads"
            lines[where] = f"{record.machine_limits.bytes_per_second / 1e9:,.1f} GB/s ({where})"
    return "; ".join(lines.values())


def fastest(records: Sequence[Record]) -> list[str]:
    """Name the engine that is fastest with all layers at each batch size; empty unless engines of
    one model compare.
    """
    timed = [(record, record.full) for record in records if record.full]
    others = varying(
        [record for record, _ in timed],
        but=["engine", "engine_weights", "ratio", "batch_size", "folder"],
    )
    if len({decoded_by(record) for record, _ in timed}) < 2 or others:
        return []
    parts = []
    for batch in sorted({record.batch_size for record, _ in timed}):
        same = [(record, full) for record, full in timed if record.batch_size == batch]
        best = decoded_by(max(same, key=lambda item: item[1].decode_tokens_per_second)[0])
        engine = [(record, full) for record, full in same if decoded_by(record) == best]
        record, full = max(engine, key=lambda item: item[0].decode_tokens_per_second or 0.0)
        rates = (
            f"{full.decode_tokens_per_second:.0f} tok/s, {record.decode_tokens_per_second:.0f} with"
            f" {record.layers} layers"
        )
        parts.append(f"{best} at batch {batch} ({rates})")
    return [f"Fastest with all layers: {', '.join(parts)}."]


def _over_generate(records: Sequence[Record]) -> dict[str, float]:
    """Return tokens/s over those of generate at full depth, for records timed at the same point on
    the same machine.
    """

    def point(record: Record) -> tuple[object, ...]:
        machine = record.environment.machine if record.environment else None
        keys = (
            "model",
            "dtype",
            "quantization",
            "batch_size",
            "timed_prompt_tokens",
            "timed_new_tokens",
            "device",
        )
        return (*map(record.value, keys), machine)

    base = {
        point(r): r.full.decode_tokens_per_second
        for r in records
        if r.engine == "transformers" and r.full
    }
    rates = ((record, base.get(point(record))) for record in records)
    return {
        record.id: (record.decode_tokens_per_second or 0.0) / rate for record, rate in rates if rate
    }


def _shared(records: Sequence[Record]) -> str:
    """Name the model, dtype and lengths that all records share."""
    forms = {
        "model": "{}",
        "dtype": "{}",
        "timed_prompt_tokens": "{} prompt tokens",
        "timed_new_tokens": "{} new tokens",
    }
    values = {key: {record.value(key) for record in records} for key in forms}
    return " · ".join(
        form.format(*values[key]) for key, form in forms.items() if len(values[key]) == 1
    )
