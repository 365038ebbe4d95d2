"""Differences between two points with 95% intervals, computed from stored answers, or from rows if answers are missing."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist

from ulskip_cli.core.task import Scoring
from ulskip_cli.experiments.record import Row
from ulskip_cli.report.columns import MIN_FOR_STARS, few_examples, speed_ends
from ulskip_cli.report.quality import LOWER_IS_BETTER, Z, standard_error, vs_baseline
from ulskip_cli.report.rows import read_answers
from ulskip_cli.tasks import metrics
from ulskip_cli.tasks.metrics.scores import Answers

HOLDS, FAILS, TIE = "holds", "does not hold", "tie"
SAME_SCORE = 1e-6
SAME_ANSWERS = "the same answers"


@dataclass(frozen=True)
class Difference:
    """The difference or ratio of one value of two points, with its 95% interval."""

    value: float
    low: float | None  # ends of its 95% interval; None if unknown
    high: float | None
    how: str  # the source of the interval

    def verdict(self, null: float = 0.0) -> str:
        """Return `holds` if the interval is above `null` (no difference), `does not hold` if it is below, or else a tie."""
        if self.low is None or self.high is None:
            return TIE
        return HOLDS if self.low > null else FAILS if self.high < null else TIE

    def text(self, form: str) -> str:
        """Format the value with its interval, or with the reason for a missing interval."""
        if self.low is None or self.high is None:
            return f"{self.value:{form}} ({self.how})"
        if self.how.startswith(SAME_ANSWERS):
            return self.how
        on = f" {self.how.removeprefix('paired bootstrap ')}" if "shared" in self.how else ""
        return f"{self.value:{form}} ({self.low:{form}} to {self.high:{form}}){on}"


class Scorer:
    """Compares the quality of points; answers and results are cached."""

    def __init__(self) -> None:
        self._read = cache(lambda folder, run_id: read_answers({"folder": folder, "id": run_id}))
        self._found: dict[tuple[str, ...], Difference] = {}

    def difference(self, own: Row, other: Row, metric: str) -> Difference:
        """Compute `own` minus `other` (positive is better) by a paired bootstrap over answers to the same examples."""
        key = (own["folder"], own["id"], other["folder"], other["id"], metric)
        if key not in self._found:
            self._found[key] = self._bootstrap(own, other, metric) or from_rows(own, other, metric)
        return self._found[key]

    def _bootstrap(self, own: Row, other: Row, metric: str) -> Difference | None:
        answers = [self._read(row["folder"], row["id"]) for row in (own, other)]
        sides = [{(one["source"], one["reference"]): one["hypothesis"] for one in side} for side in answers]
        shared = [example for example in sides[0] if example in sides[1]]
        most = max(map(len, sides))
        if not shared or len(shared) < min(most, MIN_FOR_STARS):
            return None
        on = f" to {len(shared)} shared examples" if len(shared) < most else ""
        texts, rest = ([side[example] for example in shared] for side in sides)
        if texts == rest:
            return Difference(0.0, 0.0, 0.0, f"{SAME_ANSWERS}{on}")
        spec = metrics.metric_of(metric)
        if len(shared) < MIN_FOR_STARS or spec is None or spec.is_neural:  # a report loads no model
            return None
        config = (own.get("config") or {}).get("task") or {}
        language = own["pair"].rpartition("-")[2] if own.get("pair") else config.get("target_language")
        scoring = Scoring((spec.name,), language, config.get("tokenize"), config.get("stemmer", True))
        paired = Answers(texts, [reference for _, reference in shared], [source for source, _ in shared], rest)
        found = metrics.score(scoring, paired).against_full[metric]
        how = f"paired bootstrap over answers{on}" if on else "paired bootstrap"
        return _better(Difference(found["delta"], found["delta_low"], found["delta_high"], how), metric)


def from_rows(own: Row, other: Row, metric: str) -> Difference:
    """Compute `own` minus `other` from two intervals against the same full model, treated as independent (see `apart`)."""
    value = float(own[metric]) - float(other[metric])
    errors = [error for row in (own, other) if (error := standard_error(row, metric)) is not None]
    # A full row has no interval against itself, and needs none.
    sides = [(vs_baseline(row, metric), row[metric]) for row in (own, other)]
    full, other_full = (float(compared["full"] if compared else score) for compared, score in sides)
    if any(map(few_examples, (own, other))):
        return _better(Difference(value, None, None, f"fewer than {MIN_FOR_STARS} examples"), metric)
    if not errors or abs(full - other_full) > SAME_SCORE:
        return _better(Difference(value, None, None, "no answers to the same examples"), metric)
    half = Z * math.hypot(*errors)
    return _better(Difference(value, value - half, value + half, "from the rows' intervals"), metric)


def _better(one: Difference, metric: str) -> Difference:
    """Change the sign of a difference if lower is better, so that positive is better."""
    if metric not in LOWER_IS_BETTER:
        return one
    low, high = (None if end is None else -end for end in (one.high, one.low))
    return Difference(-one.value, low, high, one.how)


def speed_ratio(own: Row, other: Row) -> Difference | None:
    """Divide `own`'s measured speedup by `other`'s, with a 95% interval; return None if a speedup was not measured."""
    if own.get("measured_speedup") is None or other.get("measured_speedup") is None:
        return None
    value = own["measured_speedup"] / other["measured_speedup"]
    errors = [error for row in (own, other) if (error := _log_error(row)) is not None]
    if len(errors) < 2:
        return Difference(value, None, None, "too few timed pairs")
    spread = Z * math.hypot(*errors)
    return Difference(value, value * math.exp(-spread), value * math.exp(spread), "from the rows' intervals")


def _log_error(row: Row) -> float | None:
    """Compute the standard error of a speedup's logarithm from its interval and coverage; None with too few timed pairs."""
    low, high = speed_ends(row)
    if low is None or high is None:
        return None
    coverage = row.get("speedup_interval_coverage")
    z = Z if coverage is None else NormalDist().inv_cdf((1 + coverage) / 2)  # None: a 95% bootstrap
    return math.log(high / low) / (2 * z)


def shared_metric(rows: Sequence[Row], metric: str | None) -> str | None:
    """Return `metric` if every row has a score under this key; otherwise return None."""
    return metric if metric and all(row.get(metric) is not None for row in rows) else None
