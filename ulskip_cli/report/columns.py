"""The columns of all tables of rows, in one order. A measured value of `experiments/record.py` is
shown where a line of `COLUMNS` names it; a `detail` only in tables of all values.
"""

from collections.abc import Callable, Collection
from operator import attrgetter
from statistics import median
from typing import NamedTuple

from ulskip_cli.experiments.record import FAILED, NOT_APPLICABLE, Record
from ulskip_cli.experiments.statistics import TIE, tested_changes
from ulskip_cli.tasks.metrics import AGREEMENT, DECODE_LOSS, METRIC_OF, ROW_KEYS

MISSING = "–"
ABSENT = {NOT_APPLICABLE: "N/A", FAILED: "failed"}  # cells of points without a result, by status
BENCHMARK = "benchmark"  # in place of a metric, which a benchmark does not have


class Column(NamedTuple):
    """A column of a table with one line for each object, e.g. a record."""

    title: str  # may hold a line break
    show: Callable[..., object] | str  # returns the value of a line, or names its attribute
    form: str = ""  # format of its numbers
    optional: bool = False  # left out on a narrow terminal, the rightmost column first
    detail: bool = False  # only in tables of all values
    metric: str = ""  # the metric that it shows; a detail unless that is the primary one

    @property
    def head(self) -> str:
        """The title on one line."""
        return self.title.replace("-\n", "").replace("\n", " ")

    def value(self, line: object) -> object:
        """Return what the column shows of a line."""
        show = attrgetter(self.show) if isinstance(self.show, str) else self.show
        return show(line)


def layers(record: Record) -> str | None:
    """Return kept and all layers, e.g. 6/12; `8/12 for 4` if the ratio asks for 4 and depths do not
    vary.
    """
    if record.kept_layers is None:
        return None
    text, wanted = f"{record.depth}/{record.num_layers}", record.target_kept_layers
    is_mean = "." in record.depth
    if wanted is None or is_mean or f"{wanted:g}" == record.depth:
        return text
    return f"{text} for {wanted:g}"


def timed_layers(record: Record) -> str | None:
    """Return the mean layers in the timed pairs, e.g. 4.0/6, if the evaluated answers ran another
    number.
    """
    if record.measured_speedup is None or not record.has_two_depths:
        return None
    return f"{record.mean_kept_layers:.1f}/{record.num_layers}"


def speedup(record: Record) -> float | None:
    """Return the measured speedup."""
    return record.speedup.value if record.speedup else None


def interval(record: Record) -> str | None:
    """Return the ends of the speedup's interval; None with too few pairs."""
    return record.speedup.ends() if record.speedup else None


def num_pairs(record: Record) -> int | None:
    """Return the number of timed pairs."""
    return len(record.pairs.strategy.decode_seconds) if record.pairs else None


def kv_share(record: Record) -> float | None:
    """Return the kept share of the prompt's KV cache."""
    total, kept = record.prompt_kv_bytes, record.kept_kv_bytes
    return kept / total if total and kept is not None else None


def read_rate(record: Record) -> float | None:
    """Return the median rate, in bytes/s, at which the machine read memory during the
    timed pairs.
    """
    units = record.pairs.units if record.pairs else ()
    rates = [unit.bytes_per_second for unit in units if unit.bytes_per_second]
    return median(rates) if rates else None


def bandwidth_share(record: Record) -> float | None:
    """Return the rate at which a step reads weights, keys and values, as a share of `read_rate`;
    None above 1, which shows that the limit was not measured.
    """
    seconds, rate = record.time_per_output_token_seconds, read_rate(record)
    if not (record.step_bytes and seconds and rate):
        return None
    share = record.step_bytes / seconds / rate
    return share if share <= 1 else None


def quality_share(record: Record) -> float | None:
    """Return the kept share of the full model's primary score."""
    return record.quality_share.value if record.quality_share else None


def quality_interval(record: Record) -> str | None:
    """Return the ends of this share's interval."""
    return record.quality_share.ends(".0%") if record.quality_share else None


def decode_rate(record: Record) -> float | None:
    """Return the decoded tokens/s in the timed pairs."""
    return record.pairs.strategy.tokens_per_second if record.pairs else None


def full_rate(record: Record) -> float | None:
    """Return the full model's decoded tokens/s in the same timed pairs."""
    full = record.pairs.full if record.pairs else None
    return full.tokens_per_second if full else None


def is_significant(record: Record, metric: str) -> bool:
    """Return True if a score differs significantly from the full model's."""
    return tested_changes(record).get(metric, TIE) != TIE


def _metric_column(metric: str) -> Column:
    """Return the column of a metric; a star marks a significant difference from full."""
    row_key = ROW_KEYS[metric]

    def show(record: Record) -> str | None:
        score = record.value(metric)
        if score is None:
            return None
        star = "*" if is_significant(record, metric) else ""
        return f"{score:{row_key.number_format}}{star}"

    title = row_key.short_title or row_key.title
    return Column(title, show, optional=row_key.optional, metric=metric)


STRATEGY = Column("strategy", "label")
DECODE_RATE = Column("decode\ntok/s", decode_rate, ".0f")
COLUMNS = (
    STRATEGY,
    Column("target", "target_speedup", ".4g", detail=True),
    Column("full in", "full_engine"),
    Column("layers", layers),
    Column("timed\nlayers", timed_layers),
    Column("layer\nratio", "layer_ratio", ".2f", detail=True),
    Column("pre-\ndicted", "predicted_speedup", ".2f"),
    Column("mea-\nsured", speedup, ".2f"),
    Column("inter-\nval", interval, optional=True),
    Column("pairs", num_pairs, "d", optional=True, detail=True),
    Column("other\nCPUs", "other_cpus", ".1f", optional=True, detail=True),
    Column("KV\nkept", kv_share, ".0%", optional=True, detail=True),
    Column("of band-\nwidth", bandwidth_share, ".0%", optional=True, metric=BENCHMARK),
    *map(_metric_column, METRIC_OF),
    Column("of\nfull", quality_share, ".0%"),
    Column("of full,\n95%", quality_interval, optional=True),
    Column("decode\nloss", "decode_loss", ".2f", metric=DECODE_LOSS.key),
    Column("agree-\nment", "agreement", ".1%", optional=True, metric=AGREEMENT.key),
    Column("of new\ntokens", "new_agreement", ".1%", optional=True, detail=True),
    Column("KL", "kl_divergence", ".2f", optional=True, detail=True),
    Column("full\ntok/s", full_rate, ".0f", optional=True),
    DECODE_RATE,
    Column("accept-\nance", "acceptance_rate", ".2f", detail=True),
    Column("tokens\na check", "mean_accepted_length", ".2f", optional=True),
)


def first_columns(metrics: Collection[str]) -> list[Column]:
    """Return the columns of the short table: those of the primary metrics (`BENCHMARK` without
    one), and all others but details.
    """
    shown = metrics or {BENCHMARK}
    return [
        column
        for column in COLUMNS
        if column.metric in shown or not (column.metric or column.detail)
    ]
