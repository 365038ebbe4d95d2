"""The share of the full model's quality that points keep, the quality gate, winners and ties.

A point passes the gate if it keeps at least that share of the full model's primary metric. The verdict is sure if the whole
95% interval of the share is above or below the gate. Only points that surely pass can win. Points tie if intervals do not
separate them. A share of fewer than `MIN_FOR_STARS` examples has no interval, because a bootstrap over them has no power.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ulskip_cli.experiments.record import Row
from ulskip_cli.report.columns import MIN_FOR_STARS, few_examples, num_pairs, speed_ends
from ulskip_cli.report.corrections import strategy_name
from ulskip_cli.report.rows import Group, done
from ulskip_cli.tasks import metrics

GATE = 0.9
METRICS = {key: metrics.row_key(key).title for key in metrics.quality_keys()}
LOWER_IS_BETTER = {key for key in METRICS if metrics.row_key(key).lower_is_better}
_PRIMARY_KEYS = {name: spec.primary for name, spec in metrics.METRICS.items()}  # row keys by the names in configurations
MIN_BLEU = 10.0  # translations below it have little in common with their references
HIGHEST_SCORE = 100.0  # of all metrics where higher is better
FEW_PAIRS = "too few timed pairs for an interval"
MAX_SHARE = 10.0  # a larger share states only that one of the two scores is close to zero
Z = 1.96  # half a 95% interval in standard errors


@dataclass(frozen=True)
class Quality:
    """A point's primary metric, compared with the full model's primary metric."""

    metric: str  # its row key
    value: float
    full: float
    share: float  # of full's quality that is kept; for metrics where lower is better, full's value over the point's
    low: float | None  # ends of the share's 95% interval, if it is known
    high: float | None
    gate: float  # the share that a point needs to pass

    @property
    def passes(self) -> bool:
        """True if the share reaches the gate."""
        return self.share >= self.gate

    @property
    def sure(self) -> bool:
        """True if the whole interval is above or below the gate; False if the interval is unknown."""
        end = self.low if self.passes else self.high
        return end is not None and (end >= self.gate) is self.passes

    @property
    def can_win(self) -> bool:
        """True if the whole interval is above the gate."""
        return self.passes and self.sure

    @property
    def caveat(self) -> str:
        """A warning if the full model's score is so low that a share of it says nothing; otherwise empty."""
        if self.metric != "bleu" or self.full >= MIN_BLEU:
            return ""
        return f"a share of full's BLEU of {self.full:.1f} says little about quality, because it is below {MIN_BLEU:g}"

    @property
    def word(self) -> str:
        """The verdict as one word for a table; a question mark means unsure."""
        return ("passes" if self.passes else "below") + ("" if self.sure else "?")

    def text(self) -> str:
        """Format the share with its interval."""
        return f"{self.share:.1%}" + ("" if self.low is None else f" ({self.low:.1%} to {self.high:.1%})")


@dataclass(frozen=True)
class Winner:
    """The best of the points that pass the gate."""

    title: str
    rows: list[Row]  # the winner, or all rows that tie, best first; empty if no row passes
    names: list[str]
    figures: list[str]
    note: str = ""

    @property
    def tie(self) -> bool:
        """True if several points win because their intervals do not separate them."""
        return len(self.rows) > 1

    def as_dict(self) -> dict[str, Any]:
        """Return the winner as plain values."""
        own = {"title": self.title, "tie": self.tie, "names": self.names, "ids": [row["id"] for row in self.rows]}
        return {**own, "figures": self.figures, "note": self.note}


def primary(rows: Iterable[Row]) -> str | None:
    """Choose the row key of the primary metric: the task's first metric in the rows, or else the first of `METRICS`."""
    rows = list(rows)
    there = {key for key in METRICS if any(row.get(key) is not None for row in rows)}
    for row in rows:
        for name in (row.get("config") or {}).get("task", {}).get("metrics") or ():
            if _PRIMARY_KEYS.get(name) in there:
                return _PRIMARY_KEYS[name]
    return next((key for key in METRICS if key in there), None)


def quality(group: Group, gate: float) -> dict[int, Quality]:
    """Judge every finished row that has a score and a full model as baseline; the keys are the rows' `id()`."""
    rows = done(group.rows)
    metric = primary(rows)
    if metric is None:
        return {}
    fulls = {row["batch_size"]: row[metric] for row in rows if row["strategy"] == "full" and row.get(metric) is not None}
    found = {}
    for row in rows:
        compared = vs_baseline(row, metric)
        full = compared["full"] if compared else fulls.get(row["batch_size"], next(iter(fulls.values()), None))
        if row.get(metric) is not None and full:
            ends_of = ("delta_low", "delta_high") if compared and not few_examples(row) else ()
            share, *ends = (_share(metric, score, full) for score in (row[metric], *(full + compared[key] for key in ends_of)))
            found[id(row)] = Quality(metric, row[metric], full, share, min(ends, default=None), max(ends, default=None), gate)
    return found


def vs_baseline(row: Row, metric: str) -> dict[str, Any]:
    """Return the row's stored comparison with the full model in a metric; empty if the row has no comparison."""
    return (row.get("vs_baseline") or {}).get(metric) or {}


def _share(metric: str, score: float, full: float) -> float:
    """Return the kept share of full's quality. An interval of scores may exceed the range of the metric; a share does not."""
    share = min(score, HIGHEST_SCORE) / full if metric not in LOWER_IS_BETTER else full / score if score > 0 else MAX_SHARE
    return min(max(0.0, share), MAX_SHARE)


def winners(group: Group, gate: float) -> list[Winner]:
    """Find the fastest point per batch size and the best quality per target, among points that surely pass the gate."""
    judged = quality(group, gate)
    rows = [row for row in done(group.rows) if row["strategy"] != "full" and id(row) in judged]
    if not rows:
        return []
    metric = judged[id(rows[0])].metric
    found = []
    timed = [row for row in done(group.rows) if row["strategy"] != "full" and row.get("measured_speedup") is not None]
    for batch in sorted({row["batch_size"] for row in timed}):
        rivals = [row for row in timed if row["batch_size"] == batch and id(row) in judged]
        own = [row for row in rivals if judged[id(row)].can_win]
        title = f"fastest at batch {batch}"
        found.append(_fastest(title, group, own, judged) if own else _nothing(title, metric, gate, rivals, judged))
    scored = [row for row in rows if row.get("target_speedup")]
    smallest = min((row["batch_size"] for row in scored), default=None)
    scored = [row for row in scored if row["batch_size"] == smallest]
    for target in sorted({row["target_speedup"] for row in scored}):
        rivals = [row for row in scored if row["target_speedup"] == target]
        own = [row for row in rivals if judged[id(row)].can_win]
        title = f"best {METRICS[metric]} at {target:g}x"
        found.append(_best(title, group, own, judged) if own else _nothing(title, metric, gate, rivals, judged))
    return found


def _nothing(title: str, metric: str, gate: float, rows: Sequence[Row], judged: dict[int, Quality]) -> Winner:
    unsure = [row for row in rows if judged[id(row)].passes]
    note = f"no point {'surely ' * bool(unsure)}keeps {gate:.0%} of full's {METRICS[metric]}"
    if any(few_examples(row) for row in unsure):
        note += f"; fewer than {MIN_FOR_STARS} examples are too few for an interval, so raise limit"
    elif unsure:
        note += f"; the intervals of {len(unsure)} points include the gate or are not known, so use more examples"
    return Winner(title, [], [], [], note)


def _fastest(title: str, group: Group, rows: Sequence[Row], judged: dict[int, Quality]) -> Winner:
    ranked = sorted(rows, key=lambda row: -row["measured_speedup"])
    low, _ = speed_ends(ranked[0])
    equal = [row for row in ranked if low is None or (high := speed_ends(row)[1]) is None or high >= low]
    notes = [] if all(None not in speed_ends(row) for row in equal) else [f"{FEW_PAIRS}, so raise speed.pairs"]
    notes += ["its interval includes 1x, so it may not be faster than full"] if low is not None and low <= 1 else []
    note = "; ".join(filter(None, [*notes, judged[id(ranked[0])].caveat]))
    figures = [f"{speed(row)}, {_kept(judged[id(row)])}" for row in equal]
    return Winner(title, equal, [called(group, row) for row in equal], figures, note)


def _best(title: str, group: Group, rows: Sequence[Row], judged: dict[int, Quality]) -> Winner:
    first, *others = sorted(rows, key=lambda row: -judged[id(row)].share)
    equal = [first, *(row for row in others if not apart(first, row, judged[id(first)].metric))]
    rivals = {strategy_name(row) for row in group.rows if row.get("target_speedup") == first["target_speedup"]}
    notes = ["the only point that passes"] if not others and len(rivals) > 1 else []
    figures = [f"{judged[id(row)].value:.2f}, {_kept(judged[id(row)])}" for row in equal]
    note = "; ".join(filter(None, [*notes, judged[id(first)].caveat]))
    return Winner(title, equal, [called(group, row) for row in equal], figures, note)


def _kept(own: Quality) -> str:
    return f"{own.text()} of full's {METRICS[own.metric]}"


def apart(one: Row, other: Row, metric: str) -> bool:
    """Return True if the 95% interval of two points' difference excludes zero.

    Both points' intervals against the full model are treated as independent. They are not, so the result is too wide.
    """
    errors = [error for row in (one, other) if (error := standard_error(row, metric)) is not None]
    if not errors or one.get(metric) is None or other.get(metric) is None:
        return False
    return bool(abs(one[metric] - other[metric]) > Z * math.hypot(*errors))


def standard_error(row: Row, metric: str) -> float | None:
    """Compute the standard error of a row's difference from the full model; return None if the row has no interval."""
    compared = vs_baseline(row, metric)
    return (compared["delta_high"] - compared["delta_low"]) / (2 * Z) if compared else None


def called(group: Group, row: Row) -> str:
    """Return the name of a point, e.g. `unified 2x`."""
    target = row.get("target_speedup")
    return f"{group.approach(row)} {target:g}x" if target else f"{group.approach(row)}, {len(row['kept_layers'])} layers"


def speed(row: Row) -> str:
    """Format a measured speedup with its interval, or that it has none, and its number of pairs."""
    count = num_pairs(row)
    low, high = speed_ends(row)
    found = [FEW_PAIRS if low is None else f"{low:.2f} to {high:.2f}", *([f"{count} pair{'s' * (count > 1)}"] if count else [])]
    return f"{row['measured_speedup']:.2f}x ({', '.join(found)})"
