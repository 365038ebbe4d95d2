"""Write the report of `ulskip bench`: decoding speed, the paper's values and a plot."""

from collections.abc import Callable, Sequence
from pathlib import Path

from rich.table import Table

from ulskip_cli.core.files import write_atomic
from ulskip_cli.experiments.record import MISSING, FullSide, Record, columns
from ulskip_cli.experiments.results import ResultsFolder
from ulskip_cli.experiments.statistics import sentence
from ulskip_cli.report import paper, tables
from ulskip_cli.report.rows import displayed, varying
from ulskip_cli.report.tables import Head, Section, column

FILE = "bench.md"
BANDWIDTH = (
    "Of bandwidth: the rate at which a step reads weights, keys and values, as a share of this"
    " machine's read bandwidth in the same rounds"
)
OVER = (
    "Over {engine}: tok/s divided by those of the full model with {engine}, median of rounds in"
    " which every engine ran once."
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
    references = sorted({r.reference_engine for r in records if r.reference_engine})
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
        *(over for engine in references for over in _over_reference(engine)),
        (
            Head("of band-\nwidth", 1),
            lambda record: f"{record.bandwidth_share:.0%}" if record.bandwidth_share else MISSING,
        ),
    ]
    notes = [
        *fastest(records),
        tables.MEASURED,
        *(OVER.format(engine=engine) for engine in references),
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


def _over_reference(engine: str) -> list[tuple[Head, Callable[[Record], str]]]:
    """Return columns of the tokens/s divided by those of an engine's full model: for the full model
    with its interval, and for the schedule.
    """

    def full(record: Record, form: str) -> str:
        side = record.full if record.reference_engine == engine else None
        is_reference = side and side.over_reference_low == side.over_reference_high == 1
        return MISSING if not side or not side.over_reference or is_reference else form.format(side)

    def skipping(record: Record) -> str:
        ratio = record.over_reference if record.reference_engine == engine else None
        return f"{ratio:.2f}" if ratio else MISSING

    ends = "{0.over_reference_low:.2f} to {0.over_reference_high:.2f}"
    return [
        (Head(f"full over\n{engine}"), lambda record: full(record, "{0.over_reference:.2f}")),
        (Head(f"interval of\nfull over {engine}", 2), lambda record: full(record, ends)),
        (Head(f"over\n{engine}"), skipping),
    ]


def read_bandwidth(records: Sequence[Record]) -> str:
    """Return the measured read bandwidth of each device and number of threads, as text."""
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
        best = decoded_by(max(same, key=lambda item: _rate(item[1]))[0])
        engine = [(record, full) for record, full in same if decoded_by(record) == best]
        record, full = max(engine, key=lambda item: item[0].decode_tokens_per_second or 0.0)
        rates = (
            f"{full.decode_tokens_per_second:.0f} tok/s, {record.decode_tokens_per_second:.0f} with"
            f" {record.layers} layers"
        )
        parts.append(f"{best} at batch {batch} ({rates})")
    return [f"Fastest with all layers: {', '.join(parts)}."]


def _rate(full: FullSide) -> tuple[float, float]:
    """Return the rate by which engines are sorted: relative to the reference in the same rounds if
    known, else tokens/s.
    """
    return full.over_reference or 0.0, full.decode_tokens_per_second


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
