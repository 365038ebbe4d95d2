"""The columns of tables: the text of each cell, and the choice of columns for a set of rows."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

from ulskip_cli.experiments.record import Row
from ulskip_cli.experiments.record_sections import MIN_COVERAGE
from ulskip_cli.report.corrections import own_options, series_name
from ulskip_cli.report.rows import MISSING, absent, knows, setting_keys, setting_title
from ulskip_cli.tasks import metrics

Cell = Callable[[Row], str]


@dataclass(frozen=True)
class Column:
    """One column of a table."""

    title: str  # may hold a line break
    show: Cell
    needs: str  # the key that some row must have for the column to be shown
    leaves: int = 0  # order of removal on a narrow terminal: 1 is removed first, 0 never; files have all columns

    @property
    def head(self) -> str:
        """The title on one line."""
        return self.title.replace("-\n", "").replace("\n", " ")


@dataclass(frozen=True)
class Section:
    """A table with its heading and note, independent of the output format."""

    title: str
    lines: list[Row]
    columns: list[Column]
    note: str = ""
    words: int = 2  # number of first columns that hold words, aligned left
    sentences: bool = False  # cells hold sentences, which wrap

    @property
    def anchor(self) -> str:
        """The id of the section on a page."""
        return re.sub(r"\W+", "-", self.title.lower()).strip("-")

    @property
    def cells(self) -> list[list[str]]:
        """The text of every cell, one list per line."""
        return cells_of(self.lines, self.columns)


def cells_of(rows: Sequence[Row], columns: Sequence[Column]) -> list[list[str]]:
    """Return the text of every cell, one list per row."""
    return [[column.show(row) for column in columns] for row in rows]


def number(key: str, form: str = ".2f") -> Cell:
    """Make cells that show the value of a row key."""
    return computed(lambda row: row.get(key), form)


def computed(value: Callable[[Row], Any], form: str) -> Cell:
    """Make cells that show a value that `value` computes from the row."""
    return lambda row: absent(row) if (own := value(row)) is None else format(own, form)


def text(key: str) -> Cell:
    """Make cells that show the value of a row key as words."""
    return lambda row: words(row, key) or MISSING


def words(row: Row, key: str) -> str | None:
    """Return the value under a key as words; a dict gives its values in order, an empty dict or None gives None."""
    value = row.get(key)
    if isinstance(value, dict):
        return " ".join(map(str, value.values())) or None
    return None if value is None else str(value)


def interval(row: Row) -> str:
    """Format the interval of the measured speedup."""
    if row.get("measured_speedup") is None:
        return absent(row)
    return f"{row['measured_speedup_low']:.2f} to {row['measured_speedup_high']:.2f}"


def speed_ends(row: Row) -> tuple[float, float] | tuple[None, None]:
    """Return the ends of the measured speedup's interval for verdicts; None if too few pairs were timed, or none.

    Intervals without a coverage are 95% bootstraps.
    """
    coverage = row.get("speedup_interval_coverage")
    if row.get("measured_speedup") is None or (coverage is not None and coverage < MIN_COVERAGE):
        return None, None
    return row["measured_speedup_low"], row["measured_speedup_high"]


def num_pairs(row: Row) -> int | None:
    """Count the timed pairs of a measured speedup; return None if the row stores no pairs."""
    return len(((row.get("pairs") or {}).get("strategy") or {}).get("decode_seconds") or ()) or None


def paired_tokens_per_second(row: Row, side: str = "strategy") -> float | None:
    """Compute tokens/s of the strategy or the full model in timed pairs, summed over the batch: the median of the pairs.

    None for rows without pairs. Earlier rows lack the numbers of tokens; theirs follow from the batch size and the seconds of
    a step. None then for the full model if pairs stop at EOS, where it has other steps than the strategy.
    """
    found = (row.get("pairs") or {}).get(side) or {}
    if found.get("decoded_tokens"):
        pairs = zip(found["decoded_tokens"], found["decode_seconds"], strict=False)
        return float(median(count / spent for count, spent in pairs))
    seconds = row.get("time_per_output_token_seconds")
    if not seconds:
        return None
    own = (row.get("timed_batch_size") or row["batch_size"]) / seconds
    if side == "strategy":
        return float(own)
    sides = row.get("pairs") or {}
    if "full" not in sides or row.get("exit_depths") or row.get("draft_tokens"):
        return None
    return float(own * median(sides["strategy"]["decode_seconds"]) / median(sides["full"]["decode_seconds"]))


def few_examples(row: Row) -> bool:
    """Return True if a row has too few examples for a significance test; an unknown number counts as enough."""
    return 0 < (row.get("num_examples") or 0) < MIN_FOR_STARS


def starred(row: Row, key: str) -> bool:
    """Return True if a score differs significantly from the full model's score."""
    compared = (row.get("vs_baseline") or {}).get(key)
    return bool(compared and not few_examples(row) and compared["p_value"] is not None and compared["p_value"] < 0.05)


def _quality(key: str) -> Cell:
    form = metrics.row_key(key).number_format
    return lambda row: absent(row) if row.get(key) is None else f"{row[key]:{form}}{'*' * starred(row, key)}"


def kv_share(row: Row) -> float | None:
    """Compute the kept share of the prompt's KV cache; return None if the row lacks the sizes."""
    total, kept = row.get("prompt_kv_bytes"), row.get("kept_kv_bytes")
    return kept / total if total and kept is not None else None


def layers(row: Row) -> str:
    """Format kept and all layers, e.g. 6/12. If the depth varies between steps, show its mean over the evaluated answers."""
    if row.get("kept_layers") is None:
        return absent(row)
    varies = row.get("later_stages") or row.get("exit_depths")
    mean = row.get("evaluated_mean_kept_layers") or row.get("mean_kept_layers") if varies else None
    return f"{len(row['kept_layers']) if mean is None else format(mean, '.1f')}/{row['num_layers']}"


MIN_FOR_STARS = 10  # examples; a bootstrap over fewer has no power
QUALITY_LEAVES = {"chrf": 13, "rouge2": 11, "rougeLsum": 12}  # see Column.leaves
COLUMNS = (
    Column("strategy", series_name, "strategy"),
    Column("layers", layers, "kept_layers"),
    Column("target", number("target_speedup", ".4g"), "target_speedup"),
    Column("layer\nratio", number("layer_ratio"), "layer_ratio"),
    Column("pre-\ndicted", number("predicted_speedup"), "predicted_speedup"),
    Column("mea-\nsured", number("measured_speedup"), "measured_speedup"),
    Column("inter-\nval", interval, "measured_speedup", leaves=15),
    Column("pairs", computed(num_pairs, "d"), "pairs", leaves=9),
    *(
        Column(metrics.row_key(key).column_title, _quality(key), key, QUALITY_LEAVES.get(key, 0))
        for key in metrics.metric_keys()
    ),
    Column("decode\nloss", number("decode_loss"), "decode_loss"),
    Column("decode\ntok/s", number("decode_tokens_per_second", ".0f"), "decode_tokens_per_second"),
    Column("total\ntok/s", number("total_tokens_per_second", ".0f"), "total_tokens_per_second", leaves=16),
    Column("accept-\nance", number("acceptance_rate"), "acceptance_rate"),
    Column("tokens\na check", number("mean_accepted_length"), "mean_accepted_length", leaves=10),
    Column("other\nCPUs", number("other_cpus", ".1f"), "other_cpus", leaves=7),
    Column("KV\nkept", computed(kv_share, ".0%"), "prompt_kv_bytes", leaves=14),
)
# Settings that distinguish the rows of a folder; a setting gets a column only if it varies.
AXES = (
    *("model", "baseline_model", "task", "pair", "dataset", "strategy_options", "decoding", "draft_tokens", "batch_size"),
    *("prompt_layers", "ratio_basis", "num_examples", "chat", "engine", "engine_weights", "baseline_engine", "compiled"),
    *("offset", "timed_prompt_tokens", "timed_new_tokens", "quantization", "dtype", "device", "seed"),
)
# Axes that depend on others, as dtype on model, leave a narrow table before numbers do.
_AXES_LEAVE = {key: turn for turn, key in enumerate(("quantization", "engine", "chat", "dtype", "device", "dataset"), start=1)}


def columns_for(rows: Sequence[Row]) -> list[Column]:
    """Choose the columns for which these rows have values."""
    axes = [
        Column(setting_title(key).replace(" ", "\n"), text(key), key, _AXES_LEAVE.get(key, 0))
        for key in varying(rows, axes_of(rows))
    ]
    shown = needed(COLUMNS, rows)
    return [*shown[:1], *axes, *shown[1:], *_harness_columns(rows)]


def needed(columns: Sequence[Column], rows: Sequence[Row]) -> list[Column]:
    """Select the columns for which some row has a value."""
    return [column for column in columns if any(row.get(column.needs) is not None for row in rows)]


def _harness_columns(rows: Sequence[Row]) -> list[Column]:
    """Make the columns of lm-evaluation-harness metrics, in the harness's units, with standard errors."""

    def show(key: str, row: Row) -> str:
        scores = row.get("lm_eval") or {}
        name, _, rest = key.partition(" ")
        error = scores.get(f"{name}_stderr {rest}".strip())
        return MISSING if scores.get(key) is None else f"{scores[key]:.4g}" + (f"±{error:.2g}" if error else "")

    keys = dict.fromkeys(key for row in rows for key in row.get("lm_eval") or {} if "_stderr" not in key)
    return [Column(key.replace("_", "\n", 1), partial(show, key), "lm_eval") for key in keys]


def axes_of(rows: Sequence[Row]) -> list[str]:
    """List the usual axes and the settings in which these rows differ."""
    return [*AXES, *setting_keys(rows)]


def varying(rows: Sequence[Row], axes: Sequence[str]) -> list[str]:
    """Select the axes in which rows differ; `strategy_options` only if one strategy occurs with different own options."""
    found = [key for key in axes if len({str(row.get(key)) for row in rows if knows(row, key)}) > 1]
    one_each = len({(row["strategy"], str(own_options(row))) for row in rows}) == len({row["strategy"] for row in rows})
    return [key for key in found if key != "strategy_options" or not one_each]
