"""How far apart two points are, with 95% intervals: from their stored answers where they are there, else from their rows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ulskip_cli.experiments.record import Row
from ulskip_cli.report import sources
from ulskip_cli.report.gate import LOWER_IS_BETTER, Z
from ulskip_cli.tasks import metrics
from ulskip_cli.tasks.metrics.scores import Answers, Scoring

HOLDS, FAILS, TIE = "holds", "does not hold", "tie"
SAME = 1e-6
LEAST_SHARED = 10  # examples that two sides with unlike data must share: a bootstrap over fewer says nothing


@dataclass(frozen=True)
class Difference:
    """One point's figure less, or over, another's.

    Attributes:
        value: the difference, or the ratio.
        low: lower end of its 95% interval; None where neither rows nor answers tell.
        high: its upper end.
        how: where the interval comes from, in words.
    """

    value: float
    low: float | None
    high: float | None
    how: str

    def verdict(self, null: float = 0.0) -> str:
        """Whether the figure is above the value that means no difference: holds, does not hold, or a tie."""
        if self.low is None or self.high is None:
            return TIE
        return HOLDS if self.low > null else FAILS if self.high < null else TIE


class Scorer:
    """Compares the quality of points; what was read and compared once is kept."""

    def __init__(self) -> None:
        """One with nothing read."""
        self._answers: dict[tuple[str, str], list[Row]] = {}
        self._found: dict[tuple[str, ...], Difference] = {}

    def difference(self, own: Row, other: Row, metric: str) -> Difference:
        """`own` less `other`, better is positive: a paired bootstrap over their answers to the same examples.

        Args:
            own: a finished row.
            other: a finished row.
            metric: row key of a metric that both have.
        """
        key = (own["folder"], own["id"], other["folder"], other["id"], metric)
        if key not in self._found:
            self._found[key] = self._bootstrap(own, other, metric) or from_rows(own, other, metric)
        return self._found[key]

    def _bootstrap(self, own: Row, other: Row, metric: str) -> Difference | None:
        sides = [{(one["source"], one["reference"]): one["hypothesis"] for one in self._read(row)} for row in (own, other)]
        shared = [example for example in sides[0] if example in sides[1]]
        most = max(map(len, sides))
        if len(shared) < min(most, LEAST_SHARED):
            return None
        on = f" to {len(shared)} shared examples" if len(shared) < most else ""
        texts, rest = ([side[example] for example in shared] for side in sides)
        if texts == rest:
            return Difference(0.0, 0.0, 0.0, f"the same answers{on}") if shared else None
        spec = metrics.metric_of(metric)
        if spec is None or spec.is_neural:  # a report loads no model
            return None
        config = (own.get("config") or {}).get("task") or {}
        language = own["pair"].rpartition("-")[2] if own.get("pair") else config.get("target_language")
        scoring = Scoring((spec.name,), language, config.get("tokenize"), config.get("stemmer", True))
        paired = Answers(texts, [reference for _, reference in shared], [source for source, _ in shared], rest)
        found = metrics.score(scoring, paired).against_full[metric]
        how = f"paired bootstrap over answers{on}" if on else "paired bootstrap"
        return _better(Difference(found["delta"], found["delta_low"], found["delta_high"], how), metric)

    def _read(self, row: Row) -> list[Row]:
        key = (row["folder"], row["id"])
        if key not in self._answers:
            self._answers[key] = sources.generations(row)
        return self._answers[key]


def from_rows(own: Row, other: Row, metric: str) -> Difference:
    """From the rows' intervals against one full model, taken as independent: too wide rather than too narrow."""
    value = own[metric] - other[metric]
    sides = [(row.get("against_full") or {}).get(metric) for row in (own, other)]
    errors = [(one["delta_high"] - one["delta_low"]) / (2 * Z) for one in sides if one]
    # A full model's own row has no interval against itself, and needs none where it is that full model.
    fulls = [one["full"] if one else row[metric] for one, row in zip(sides, (own, other), strict=True)]
    if not errors or abs(fulls[0] - fulls[1]) > SAME:
        return _better(Difference(value, None, None, "no answers to the same examples"), metric)
    half = Z * math.hypot(*errors)
    return _better(Difference(value, value - half, value + half, "from the rows' intervals"), metric)


def _better(one: Difference, metric: str) -> Difference:
    """The difference turned so that better is positive."""
    if metric not in LOWER_IS_BETTER:
        return one
    low, high = (None if end is None else -end for end in (one.high, one.low))
    return Difference(-one.value, low, high, one.how)


def speed_ratio(own: Row, other: Row) -> Difference | None:
    """One measured speedup over another, each with its bootstrap interval; None where one was not measured."""
    if own.get("measured_speedup") is None or other.get("measured_speedup") is None:
        return None
    value = own["measured_speedup"] / other["measured_speedup"]
    spread = math.hypot(*(_log_error(row) for row in (own, other)))
    return Difference(value, value * math.exp(-Z * spread), value * math.exp(Z * spread), "from the rows' intervals")


def _log_error(row: Row) -> float:
    return math.log(row["measured_speedup_high"] / row["measured_speedup_low"]) / (2 * Z)


def shared_metric(rows: Sequence[Row], metric: str | None) -> str | None:
    """The metric, if every one of the rows has it."""
    return metric if metric and all(row.get(metric) is not None for row in rows) else None
