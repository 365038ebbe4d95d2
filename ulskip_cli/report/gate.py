"""The quality gate, and the winners among what passes it.

A point passes where its primary metric is at least the gate's share of the full model's. It passes or fails for sure where
the whole 95% interval of that share lies on one side. Winners are named among passing points alone, and what
the intervals do not tell apart is a tie.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ulskip_cli.experiments.record import Row
from ulskip_cli.report.groups import Group
from ulskip_cli.report.status import done
from ulskip_cli.tasks import metrics

GATE = 0.9
METRICS = {key: metrics.row_key(key).title for key in metrics.quality_keys()}
LOWER_IS_BETTER = {key for key in METRICS if metrics.row_key(key).lower_is_better}
_KEYS = {name: spec.primary for name, spec in metrics.METRICS.items()}
Z = 1.96  # half a 95% interval in standard errors


@dataclass(frozen=True)
class Quality:
    """A point's primary metric beside the full model's.

    Attributes:
        metric: its row key.
        value: the point's.
        full: the full model's.
        share: of full's quality that is kept; where lower is better, full's value over the point's.
        low: lower end of the share's 95% interval; None where it is not known.
        high: its upper end.
        gate: the share that is asked for.
    """

    metric: str
    value: float
    full: float
    share: float
    low: float | None
    high: float | None
    gate: float

    @property
    def passes(self) -> bool:
        """Whether the share reaches the gate."""
        return self.share >= self.gate

    @property
    def measured(self) -> bool:
        """Whether the share has an interval."""
        return self.low is not None and self.high is not None

    @property
    def sure(self) -> bool:
        """Whether the whole interval lies on that side of the gate; without one nothing is sure."""
        if self.low is None or self.high is None:
            return False
        return self.low >= self.gate if self.passes else self.high < self.gate

    @property
    def word(self) -> str:
        """The verdict for a table."""
        return ("passes" if self.passes else "below") + ("" if self.sure else "?")


@dataclass(frozen=True)
class Winner:
    """The best among what passes the gate.

    Attributes:
        title: in what.
        rows: the winner alone, or all that tie, the best figure first; empty where nothing passes.
        names: of every one of them.
        figures: likewise, in words.
        note: what is to be said besides.
    """

    title: str
    rows: list[Row]
    names: list[str]
    figures: list[str]
    note: str = ""

    @property
    def tie(self) -> bool:
        """Whether the intervals do not tell several apart."""
        return len(self.rows) > 1

    def told(self) -> dict[str, Any]:
        """For machines."""
        ids = [row["id"] for row in self.rows]
        return {
            "title": self.title,
            "tie": self.tie,
            "names": self.names,
            "ids": ids,
            "figures": self.figures,
            "note": self.note,
        }


def primary(rows: Iterable[Row]) -> str | None:
    """The row key of the metric that decides: the task's first one, or the first of the usual ones that is there."""
    rows = list(rows)
    there = {key for key in METRICS if any(row.get(key) is not None for row in rows)}
    for row in rows:
        for name in (row.get("config") or {}).get("task", {}).get("metrics") or ():
            if _KEYS.get(name, name) in there:
                return _KEYS.get(name, str(name))
    return next((key for key in METRICS if key in there), None)


def quality(group: Group, gate: float) -> dict[int, Quality]:
    """Every finished row's quality, by the row's `id()`; rows without a score or a full model to compare with are left out."""
    rows = done(group.rows)
    metric = primary(rows)
    if metric is None:
        return {}
    fulls = {row["batch_size"]: row[metric] for row in rows if row["strategy"] == "full" and row.get(metric) is not None}
    found = {}
    for row in rows:
        compared = (row.get("against_full") or {}).get(metric)
        full = compared["full"] if compared else fulls.get(row["batch_size"], next(iter(fulls.values()), None))
        if row.get(metric) is not None and full:
            found[id(row)] = _quality(metric, row[metric], full, compared, gate)
    return found


def _quality(metric: str, value: float, full: float, compared: dict[str, Any] | None, gate: float) -> Quality:
    def share(score: float) -> float:
        if metric not in LOWER_IS_BETTER:
            return score / full
        return full / score if score > 0 else math.inf

    ends = [share(full + compared[key]) for key in ("delta_low", "delta_high")] if compared else []
    return Quality(metric, value, full, share(value), min(ends, default=None), max(ends, default=None), gate)


def winners(group: Group, gate: float) -> list[Winner]:
    """The fastest point at every batch size, and the best quality at every target; none without quality."""
    judged = quality(group, gate)
    passing = [row for row in done(group.rows) if row["strategy"] != "full" and id(row) in judged and judged[id(row)].passes]
    if not judged or all(row["strategy"] == "full" for row in done(group.rows) if id(row) in judged):
        return []
    name = METRICS[next(iter(judged.values())).metric]
    found = [_fastest(group, passing, judged, batch, name) for batch in group.batches if _timed(group.rows, batch)]
    scored = [row for row in done(group.rows) if row["strategy"] != "full" and id(row) in judged and row.get("target_speedup")]
    smallest = [row for row in scored if row["batch_size"] == min(row["batch_size"] for row in scored)]
    for target in sorted({row["target_speedup"] for row in smallest}):
        rows = [row for row in smallest if row["target_speedup"] == target and judged[id(row)].passes]
        found.append(_best(group, rows, judged, target, name))
    return found


def _timed(rows: Iterable[Row], batch: int) -> list[Row]:
    return [
        row
        for row in rows
        if row["batch_size"] == batch and row.get("measured_speedup") is not None and row["strategy"] != "full"
    ]


def _fastest(group: Group, passing: Sequence[Row], judged: dict[int, Quality], batch: int, name: str) -> Winner:
    title = f"fastest at batch {batch}"
    ranked = sorted(_timed(passing, batch), key=lambda row: -row["measured_speedup"])
    if not ranked:
        return Winner(title, [], [], [], _nothing(judged, name))
    equal = [row for row in ranked if row["measured_speedup_high"] >= ranked[0]["measured_speedup_low"]]
    note = "" if ranked[0]["measured_speedup_low"] > 1 else "not faster than full within the interval"
    figures = [f"{speed(row)}, {kept(judged[id(row)], name)}" for row in equal]
    return Winner(title, equal, [called(group, row) for row in equal], figures, note)


def _best(group: Group, rows: Sequence[Row], judged: dict[int, Quality], target: float, name: str) -> Winner:
    title = f"best {name} at {target:g}x"
    if not rows:
        return Winner(title, [], [], [], _nothing(judged, name))
    ranked = sorted(rows, key=lambda row: -judged[id(row)].share)
    first = ranked[0]
    equal = [row for row in ranked if row is first or not apart(first, row, judged[id(first)].metric)]
    others = {row["strategy"] for row in group.rows if row.get("target_speedup") == target}
    notes = ["the only one to pass"] if len(rows) == 1 and len(others) > 1 else []
    if not judged[id(first)].sure:
        notes.append("by its figure, not by all of its interval")
    figures = [f"{judged[id(row)].value:.2f}, {kept(judged[id(row)], name)}" for row in equal]
    return Winner(title, equal, [called(group, row) for row in equal], figures, ", ".join(notes))


def _nothing(judged: dict[int, Quality], name: str) -> str:
    return f"nothing keeps {judged[next(iter(judged))].gate:.0%} of full's {name}"


def apart(one: Row, other: Row, metric: str) -> bool:
    """Whether the 95% interval of two points' difference leaves out zero, as far as their rows tell.

    The intervals of their differences to full are taken as independent, which they are not: too wide rather than too narrow.
    """
    errors = []
    for row in (one, other):
        compared = (row.get("against_full") or {}).get(metric)
        if compared:
            errors.append((compared["delta_high"] - compared["delta_low"]) / (2 * Z))
    if not errors or one.get(metric) is None or other.get(metric) is None:
        return False
    return abs(float(one[metric]) - float(other[metric])) > Z * math.hypot(*errors)


def called(group: Group, row: Row) -> str:
    """A point in words: `unified 2x`."""
    target = row.get("target_speedup")
    return f"{group.approach(row)} {target:g}x" if target else f"{group.approach(row)}, {len(row['kept_layers'])} layers"


def speed(row: Row) -> str:
    """A measured speedup in words, with its interval."""
    return f"{row['measured_speedup']:.2f}x ({row['measured_speedup_low']:.2f}-{row['measured_speedup_high']:.2f})"


def kept(own: Quality, name: str) -> str:
    """A share of quality in words, with its interval."""
    ends = f" ({own.low:.1%}-{own.high:.1%})" if own.low is not None and own.high is not None else ""
    return f"{own.share:.1%}{ends} of full's {name}"
