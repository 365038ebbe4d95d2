"""Rows in the layout of the paper's table 4: a line a target and approach, tokens/s by batch size."""

from collections.abc import Sequence

from ulskip_cli.report.table import NO_RESULT, layers
from ulskip_cli.results import Row, is_done

MISSING = "–"
METRICS = {"bleu": "BLEU", "rougeL": "ROUGE-L", "decode_loss": "decode loss"}
NOTE = (
    "measured: full over strategy in decode seconds, median of pairs, at the smallest batch; tokens/s counts prompt and "
    "generated ids, as the paper does"
)


def markdown(rows: Sequence[Row]) -> str:
    """One table for every model, task, pair and decoding among the rows.

    Args:
        rows: any rows; those without a target speedup (a schedule of one's own) are left out.
    """
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        if row["target_speedup"] is not None:
            groups.setdefault(tuple(str(row.get(key)) for key in ("model", "task", "pair", "decoding")), []).append(row)
    parts = [f"## {' · '.join(part for part in key if part != 'None')}\n\n{_table(group)}" for key, group in groups.items()]
    return "\n\n".join([*parts, NOTE]) + "\n"


def _table(rows: Sequence[Row]) -> str:
    batches = sorted({row["batch_size"] for row in rows})
    metric = next((key for key in METRICS if any(row.get(key) is not None for row in rows)), None)
    points: dict[tuple[float, str], dict[int, Row]] = {}
    for row in sorted(rows, key=_order):
        points.setdefault((row["target_speedup"], row["strategy"]), {})[row["batch_size"]] = row
    quality = [METRICS[metric]] if metric else []
    heads = [
        "target",
        "approach",
        "layers",
        *quality,
        "predicted",
        "measured",
        *(f"tokens/s, batch {size}" for size in batches),
    ]
    lines = [heads, ["---", "---", *["---:"] * (len(heads) - 2)]]
    for (target, strategy), by_batch in points.items():
        done = [by_batch[size] for size in sorted(by_batch) if is_done(by_batch[size])]
        first = (done or [by_batch[min(by_batch)]])[0]
        speeds = [_speed(by_batch.get(size, {})) for size in batches]
        scores = [_number(first.get(metric), ".2f")] if metric else []
        speedups = [_number(first.get(key), ".2f") for key in ("predicted_speedup", "measured_speedup")]
        lines.append([f"{target:g}x", strategy, layers(first) if done else _speed(first), *scores, *speedups, *speeds])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _speed(row: Row) -> str:
    """Tokens/s as the paper counts them, or why there are none."""
    return NO_RESULT.get(row.get("status", ""), _number(row.get("total_tokens_per_second"), ".0f"))


def _order(row: Row) -> tuple[float, int, str]:
    """By target; unified last, as in the paper."""
    return row["target_speedup"], row["strategy"] == "unified", row["strategy"]


def _number(value: float | None, form: str) -> str:
    return MISSING if value is None else format(value, form)
