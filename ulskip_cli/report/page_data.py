"""Rows as a page's table wants them: columns with a kind, values that can be sorted, schedules once each."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ulskip_cli.experiments.record import Row, is_done
from ulskip_cli.report import drawing, settings
from ulskip_cli.report.columns import LEAST_FOR_STARS, axes_of, varying
from ulskip_cli.report.gate import Quality, quality
from ulskip_cli.report.groups import Group
from ulskip_cli.report.pictures import last_stage
from ulskip_cli.report.status import absent
from ulskip_cli.tasks.metrics import metric_keys, row_key

FACETS = {"target_speedup", "strategy", "batch_size"}
SCORES = {key: row_key(key).column_title for key in metric_keys()}


@dataclass(frozen=True)
class Field:
    """A column of the page's table.

    Attributes:
        key: its name in the page's address.
        title: its head.
        kind: how the page draws and sorts it.
        value: of a row: a number, a text, or a list whose first item is what is sorted by.
        tip: what it means.
        more: what else the page is told, as `digits` of numbers.
    """

    key: str
    title: str
    kind: str
    value: Callable[[Row], Any]
    tip: str = ""
    more: dict[str, Any] | None = None

    def told(self) -> dict[str, Any]:
        """For the page."""
        own = {"key": self.key, "title": self.title, "kind": self.kind, "facet": self.key in FACETS}
        return {**own, **({"tip": self.tip} if self.tip else {}), **(self.more or {})}


def told(groups: Sequence[Group], rows: Sequence[Row], gate: float, readable: set[int]) -> dict[str, Any]:
    """The data of the page's table.

    Args:
        groups: the rows by setting.
        rows: in the order that the table has at first.
        gate: share of full's quality.
        readable: positions of the rows whose answers the page holds.
    """
    judged: dict[int, Quality] = {}
    approaches: dict[int, str] = {}
    for group in groups:
        judged |= quality(group, gate)
        approaches |= {id(row): group.approach(row) for row in group.rows}
    strips: dict[tuple[int, tuple[int, ...], tuple[int, ...]], int] = {}
    fields = _fields(rows, judged, approaches, strips)
    table = [[field.value(row) for field in fields] for row in rows]
    shown = [i for i, field in enumerate(fields) if field.key in ("strategy", "target_speedup", "batch_size", "approach")
             or any(line[i] is not None for line in table)]  # fmt: skip
    columns = [fields[i].told() for i in shown]
    lines = [[_finite(line[i]) for i in shown] for line in table]
    if readable:
        columns.append({"key": "read", "title": "answers", "kind": "read", "facet": False})
        lines = [[*line, i in readable] for i, line in enumerate(lines)]
    schedules = [{"n": n, "kept": kept, "last": last} for n, kept, last in strips]
    colours = {name: drawing.colour(name) for name in {str(row["strategy"]) for row in rows}}
    return {"columns": columns, "rows": lines, "strips": schedules, "colours": colours, "gate": gate}


def _fields(
    rows: Sequence[Row],
    judged: dict[int, Quality],
    approaches: dict[int, str],
    strips: dict[tuple[int, tuple[int, ...], tuple[int, ...]], int],
) -> list[Field]:
    def get(key: str) -> Callable[[Row], Any]:
        return lambda row: row.get(key)

    def strip(row: Row) -> int | None:
        if not row.get("kept_layers") or not row.get("num_layers"):
            return None
        key = (row["num_layers"], tuple(row["kept_layers"]), tuple(sorted(last_stage(row))))
        return strips.setdefault(key, len(strips))

    def share(row: Row) -> list[float | None] | None:
        own = judged.get(id(row))
        return [own.share, own.low, own.high] if own else None

    def gated(row: Row) -> str | None:
        own = judged.get(id(row))
        return own.word if own and row["strategy"] != "full" else None

    def score(key: str) -> Callable[[Row], list[Any] | None]:
        return lambda row: None if row.get(key) is None else [row[key], _starred(row, key)]

    hidden = {"hidden": True}
    axes = [key for key in varying(rows, ["folder", *axes_of(rows)]) if key not in ("batch_size", "strategy_options")]
    return [
        Field("strategy", "strategy", "text", get("strategy")),
        Field("approach", "approach", "text", lambda row: approaches.get(id(row)), more=hidden),
        Field("absent", "", "text", lambda row: None if is_done(row) else absent(row), more=hidden),
        Field("target_speedup", "target", "number", get("target_speedup"), "the speedup asked for", {"trim": True}),
        Field("batch_size", "batch", "number", get("batch_size"), "sequences decoded at once", {"digits": 0}),
        *(_axis(rows, key) for key in axes),
        Field("layers", "kept layers", "strip", strip, "first layer on the left; paler ones do not run for every token"),
        _number("layer_ratio", "layer ratio", "all layers over kept ones"),
        _number("predicted_speedup", "predicted", "by bytes of weights that a step reads"),
        Field("measured", "measured", "interval", _measured, "full over strategy, decode seconds, median of pairs", _MEASURED),
        *(
            Field(key, title, "score", score(key), "* differs from full, p < 0.05", {**_MEASURED, "digits": 1})
            for key, title in SCORES.items()
        ),
        Field("share", "of full", "share", share, "share of full's primary metric", {"measured": True, "digits": 1}),
        Field("gate", "gate", "gate", gated, "? the interval holds the gate"),
        _number("decode_loss", "decode loss", "cross-entropy of the references, nats a token"),
        _number("decode_tokens_per_second", "decode tok/s", "generated ids after the first over decode seconds", 0),
        _number("total_tokens_per_second", "total tok/s", "prompt and generated ids over all seconds", 0),
        _number("acceptance_rate", "acceptance", "accepted drafts over drafts"),
        Field("kv", "KV kept", "share", _kv, "share of the prompt's cache that stays", {"digits": 0, "plain": True}),
        Field("reason", "why", "text", lambda row: None if is_done(row) else row.get("reason")),
    ]


_MEASURED = {"measured": True}


def _axis(rows: Sequence[Row], key: str) -> Field:
    """A column of numbers where all are, of words else."""

    def words(row: Row) -> str | None:
        own = row.get(key)
        if isinstance(own, dict):
            return " ".join(map(str, own.values())) or None
        return None if own is None else str(own)

    numbers = all(
        isinstance(own, (int, float)) and not isinstance(own, bool) for row in rows if (own := row.get(key)) is not None
    )
    if numbers:
        return Field(key, settings.title(key), "number", lambda row: row.get(key), more={"trim": True, "facet": True})
    return Field(key, settings.title(key), "text", words, more={"facet": True})


def _number(key: str, title: str, tip: str, digits: int = 2) -> Field:
    return Field(key, title, "number", lambda row: row.get(key), tip, {"measured": True, "digits": digits})


def _measured(row: Row) -> list[float | None] | None:
    if row.get("measured_speedup") is None:
        return None
    return [row["measured_speedup"], row.get("measured_speedup_low"), row.get("measured_speedup_high")]


def _kv(row: Row) -> list[float | None] | None:
    total = row.get("prompt_kv_bytes")
    return [row["kept_kv_bytes"] / total, None, None] if total and row.get("kept_kv_bytes") is not None else None


def _starred(row: Row, key: str) -> bool:
    compared = (row.get("against_full") or {}).get(key)
    enough = row.get("num_examples", LEAST_FOR_STARS) >= LEAST_FOR_STARS
    return bool(compared and enough and compared["p_value"] is not None and compared["p_value"] < 0.05)


def _finite(value: Any) -> Any:
    """JSON has no infinities: they become null."""
    if isinstance(value, list):
        return [_finite(one) for one in value]
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value
