"""Write the report of `ulskip bench`: decoding speed."""

from collections.abc import Sequence

from ulskip_cli.experiments.intervals import Interval
from ulskip_cli.experiments.record import COLUMNS, Column, Record
from ulskip_cli.experiments.results import ResultsFolder
from ulskip_cli.experiments.settings import all_settings, differences
from ulskip_cli.experiments.statistics import is_faster, sentence
from ulskip_cli.report import tables
from ulskip_cli.report.rows import collected, reasons, stored
from ulskip_cli.report.tables import TableSection

FILE = "bench.md"
BANDWIDTH = (
    "Of bandwidth: the rate at which a step reads weights, keys and values, as a share of this"
    " machine's read bandwidth in the same rounds"
)
SPEED = ("layers", "target_speedup", "predicted_speedup", "measured_speedup", "interval")
OVER = (
    "Over {engine}: tok/s divided by those of the full model with {engine}, in rounds in which"
    " every engine ran once."
)


SHARED = {
    "model": "{}",
    "dtype": "{}",
    "timed_prompt_tokens": "{} prompt tokens",
    "timed_new_tokens": "{} new tokens",
}


def bench_lead(records: Sequence[Record]) -> list[str]:
    """Return the result in sentences: the fastest engine with all layers, and the fastest point
    that skips layers, among those that are measurably faster than the full model if there are any.
    """
    skipping = [record for record in records if not record.keeps_all and record.speedup]
    faster = list(filter(is_faster, skipping))
    best = max(
        faster or skipping or records, key=lambda record: record.timed_tokens_per_second or 0.0
    )
    return [*fastest(records), ": ".join(filter(None, [decoded_by(best), sentence(best)]))]


def write_bench_report(folder: ResultsFolder) -> None:
    """Write bench.md from all benchmark records of a folder."""
    every = [record for record in stored(folder) if record.command == "bench"]
    records = [record for record in every if record.machine_limits]
    parts = [*fastest(records), tables.with_heading(section(records)), *reasons(every)]
    tables.write_markdown(folder.path / FILE, records, parts)


def decoded_by(record: Record) -> str:
    """Return the name of the engine, the format of its weights, and `compiled` if its steps
    were compiled.
    """
    name = " ".join(filter(None, [record.engine, record.engine_weights]))
    return name


def section(records: Sequence[Record]) -> TableSection:
    """Make the table of benchmark records, ordered by model, batch size, engine, layer ratio
    (lowest first) and strategy.
    """
    records = sorted(
        records,
        key=lambda record: (
            str(record.model),
            record.batch_size,
            decoded_by(record),
            record.layer_ratio or 1.0,
            record.strategy,
        ),
    )
    references = {record.reference_engine for record in records if record.reference_engine}
    reference = min(references) if len(references) == 1 else "reference"
    shown = ["batch_size", "engine", "engine_weights", "ratio", "folder"]
    columns = [
        Column("batch", "batch_size"),
        Column("engine", decoded_by),
        *[COLUMNS["label"]] * (len({record.label for record in records}) > 1),
        *(
            tables.setting(key)
            for key in differences(all_settings(records), but=shown)
            if key.name != "strategy.name" and key.part != "correction"
        ),
        *map(COLUMNS.__getitem__, SPEED),
        Column("full\ntok/s", lambda record: _full_rate(record)[1] or None, ".0f"),
        COLUMNS["timed_tokens_per_second"]._replace(title="tok/s"),
        Column(
            f"full over\n{reference}", lambda record: (over := _over(record)) and over.value, ".2f"
        ),
        Column(
            f"interval of\nfull over {reference}",
            lambda record: (over := _over(record)) and over.ends(),
            "",
            True,
        ),
        Column(f"over\n{reference}", "over_reference", ".2f"),
        *[Column("reference", "reference_engine")] * (len(references) > 1),
        Column("of band-\nwidth", lambda record: record.bandwidth_share or None, ".0%", True),
    ]
    notes = [
        tables.MEASURED,
        OVER.format(engine=reference) * any(record.over_reference for record in records),
        *tables.interval_notes(records),
        f"{BANDWIDTH}: {rates}" if (rates := read_bandwidth(records)) else "",
    ]
    title = f"Decoding speed: {tables.shared(records, SHARED)}"
    return TableSection.of(title, records, columns, tables.sentences(notes))


def _over(record: Record) -> Interval | None:
    """Return the tokens/s of the full model divided by those of the reference engine, or None for
    this engine.
    """
    side = record.full
    is_reference = record.engine == record.reference_engine and not record.engine_weights
    if side is None or not side.over_reference or is_reference:
        return None
    return Interval(side.over_reference, side.over_reference_low, side.over_reference_high)


def read_bandwidth(records: Sequence[Record]) -> str:
    """Return the measured read bandwidth of each device and number of threads, as text."""
    lines = {}
    for record in records:
        if record.machine_limits and record.environment:
            where = f"{record.device}, {record.environment.threads} threads"
            lines[where] = f"{record.machine_limits.bytes_per_second / 1e9:,.1f} GB/s ({where})"
    return "; ".join(lines.values())


def fastest(records: Sequence[Record]) -> list[str]:
    """Name the engine that is fastest with all layers at each batch size; empty with one engine, or
    if records differ in other settings, such as the model.
    """
    timed = [record for record in records if record.full]
    may_differ = ["engine", "engine_weights", "ratio", "batch_size", "folder"]
    others = differences(all_settings(timed), but=may_differ)
    if len(set(map(decoded_by, timed))) < 2 or others:
        return []
    parts = []
    for batch, of_batch in sorted(collected(timed, lambda record: record.batch_size).items()):
        best = decoded_by(max(of_batch, key=_full_rate))
        of_best = [record for record in of_batch if decoded_by(record) == best]
        quickest = max(of_best, key=lambda record: record.timed_tokens_per_second or 0.0)
        parts.append(
            f"{best} at batch {batch} ({_full_rate(quickest)[1]:.0f} tok/s,"
            f" {quickest.timed_tokens_per_second:.0f} with {quickest.layers} layers)"
        )
    return [f"Fastest with all layers: {', '.join(parts)}."]


def _full_rate(record: Record) -> tuple[float, float]:
    """Return the rate of the full model by which engines are sorted: relative to the reference in
    the same rounds if known, else tokens/s.
    """
    over = record.full.over_reference if record.full else None
    return over or 1.0, record.full_tokens_per_second or 0.0
