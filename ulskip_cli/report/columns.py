"""The columns that tables have for people: what a cell of a row shows, and which of them rows call for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ulskip_cli.experiments.record import Row
from ulskip_cli.report import settings
from ulskip_cli.report.status import MISSING, absent
from ulskip_cli.tasks import metrics


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


def text(key: str) -> Callable[[Row], str]:
    """The words under a key."""

    def show(row: Row) -> str:
        value = row.get(key)
        if isinstance(value, dict):
            return " ".join(str(part) for part in value.values()) or MISSING
        return MISSING if value is None else str(value)

    return show


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
        return f"{row[key]:{metrics.row_key(key).number_format}}{mark}"

    return show


def _kv_share(row: Row) -> str:
    total = row.get("prompt_kv_bytes")
    return f"{row['kept_kv_bytes'] / total:.0%}" if total else absent(row)


def layers(row: Row) -> str:
    """Kept layers of all; where the number changes from step to step on average, over the answers that the quality is of."""
    if row.get("kept_layers") is None:
        return absent(row)
    varies = row.get("later_stages") or row.get("exit_depths")
    mean = row.get("evaluated_mean_kept_layers") or row.get("mean_kept_layers") if varies else None
    return f"{len(row['kept_layers']) if mean is None else format(mean, '.1f')}/{row['num_layers']}"


LEAST_FOR_STARS = 10  # a bootstrap over fewer examples says nothing
_QUALITY_LEAVES = {"chrf": 13, "rouge2": 11, "rougeLsum": 12}
COLUMNS = (
    Column("strategy", lambda row: row["strategy"], "strategy"),
    Column("layers", layers, "kept_layers"),
    Column("target", number("target_speedup", ".4g"), "target_speedup"),
    Column("layer\nratio", number("layer_ratio"), "layer_ratio"),
    Column("pre-\ndicted", number("predicted_speedup"), "predicted_speedup"),
    Column("mea-\nsured", number("measured_speedup"), "measured_speedup"),
    Column("95%", interval, "measured_speedup", leaves=15),
    *(
        Column(metrics.row_key(key).column_title, _quality(key), key, _QUALITY_LEAVES.get(key, 0))
        for key in metrics.metric_keys()
    ),
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


def columns_for(rows: Sequence[Row]) -> list[Column]:
    """The columns that have something to say about these rows."""
    axes = [
        Column(settings.title(key).replace(" ", "\n"), text(key), key, _AXES_LEAVE.get(key, 0))
        for key in varying(rows, axes_of(rows))
    ]
    told = {key for row in rows for key, value in row.items() if value is not None}
    shown = [column for column in COLUMNS if column.needs in told]
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


def axes_of(rows: Sequence[Row]) -> list[str]:
    """The usual axes, and what else of the configuration tells these rows apart."""
    return [*AXES, *settings.keys(rows)]


def varying(rows: Sequence[Row], axes: Sequence[str]) -> list[str]:
    """The axes in which rows differ; options only where one strategy has several sets of them."""
    found = [key for key in axes if len({str(row.get(key)) for row in rows if key in row}) > 1]
    if len({(row["strategy"], str(row.get("strategy_options"))) for row in rows}) == len({row["strategy"] for row in rows}):
        found = [key for key in found if key != "strategy_options"]
    return found
