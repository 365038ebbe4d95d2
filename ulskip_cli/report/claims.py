"""Claims about a sweep, each with figures and a verdict: holds, does not hold, or a tie that the interval leaves."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ulskip_cli.experiments.record import Row
from ulskip_cli.report import settings
from ulskip_cli.report.columns import Column, text
from ulskip_cli.report.compare import shared
from ulskip_cli.report.difference import FAILS, HOLDS, TIE, Difference, Scorer, shared_metric, speed_ratio
from ulskip_cli.report.gate import METRICS, kept, primary, quality, speed
from ulskip_cli.report.groups import SETTINGS, Group, grouped
from ulskip_cli.report.status import done

TOLERANCE = 0.15
CHAMPION = "unified"  # the paper's strategy, that its claims are about
ALIKE = ("model", "task", "pair", "dataset", "decoding")  # what a claim is about; other settings may differ between sides
_VERDICTS = (HOLDS, TIE, FAILS)


@dataclass(frozen=True)
class Judged:
    """A claim's figures on one side, and what they say of it."""

    figures: str
    verdict: str


@dataclass(frozen=True)
class Claim:
    """A claim, judged on the rows that are looked at and, where there are some, on those that they are compared with.

    Attributes:
        setting: what the rows share; empty where there is one setting.
        text: the claim.
        new: on the rows that are looked at.
        old: on the others; None where the claim is about both, or they lack the points.
    """

    setting: str
    text: str
    new: Judged
    old: Judged | None

    def told(self) -> dict[str, Any]:
        """For machines."""
        return asdict(self)


def claims(new: Sequence[Row], old: Sequence[Row], gate: float, scorer: Scorer, tolerance: float = TOLERANCE) -> list[Claim]:
    """What the paper says of unified skipping, and whether `old` was measured again.

    Args:
        new: the rows that are looked at.
        old: rows to compare with; may be empty.
        gate: share of full's quality that counts as kept.
        scorer: compares answers.
        tolerance: by how much a speedup measured again may differ.
    """
    groups, former = grouped(done(new)), grouped(done(old))
    rest = [key for key in (*SETTINGS, *settings.keys([*new, *old])) if key not in (*ALIKE, "folder")]
    keys = [*ALIKE, *shared(done(new), done(old), rest)[0]]
    found = []
    for group in groups:
        alike = [one for one in former if _setting(one, keys) == _setting(group, keys)]
        before = alike[0] if len(alike) == 1 else None  # several are of settings that this side has none of
        mine = dict(_own(group, gate, scorer))
        theirs = dict(_own(before, gate, scorer)) if before else {}
        label = group.label if len(groups) > 1 else ""
        found += [Claim(label, text, judged, theirs.get(text)) for text, judged in mine.items()]
        if before:
            found += [Claim(label, text, judged, None) for text, judged in _again(group, before, scorer, tolerance)]
    return found


def summary(found: Sequence[Claim]) -> str:
    """How many claims came out how.

    >>> summary([Claim("", "a", Judged("1", "holds"), None)])
    '1 of 1 claims holds'
    """
    counts = {verdict: sum(claim.new.verdict == verdict for claim in found) for verdict in _VERDICTS}
    first = f"{counts[HOLDS]} of {len(found)} claims {'holds' if counts[HOLDS] == 1 else 'hold'}"
    rest = [f"{counts[TIE]} tie"] * bool(counts[TIE]) + [f"{counts[FAILS]} do not hold"] * bool(counts[FAILS])
    return ", ".join([first, *rest])


def lines(found: Sequence[Claim]) -> tuple[list[Row], list[Column]]:
    """A line a claim, and the columns of a table of them."""
    rows: list[Row] = []
    for claim in found:
        old = {"old": claim.old.figures, "old_verdict": claim.old.verdict} if claim.old else {}
        rows.append(
            {"setting": claim.setting, "claim": claim.text, "verdict": claim.new.verdict, "new": claim.new.figures, **old}
        )
    wanted = {
        "claim": "claim", "setting": "setting", "verdict": "verdict", "new": "figures", "old_verdict": "verdict before",
        "old": "figures before",
    }  # fmt: skip
    columns = [Column(title, text(key), key) for key, title in wanted.items() if any(row.get(key) for row in rows)]
    return rows, columns


def _setting(group: Group, keys: Sequence[str]) -> list[str]:
    return [next((str(row[key]) for row in group.rows if key in row), "") for key in keys]


def _points(group: Group) -> dict[tuple[float, str], Row]:
    """The finished row of every target and approach, at its smallest batch size."""
    found: dict[tuple[float, str], Row] = {}
    for row in sorted(group.rows, key=lambda row: -int(row["batch_size"])):
        if row.get("target_speedup") is not None:
            found[row["target_speedup"], group.approach(row)] = row
    return dict(sorted(found.items()))


def _own(group: Group, gate: float, scorer: Scorer) -> Iterator[tuple[str, Judged]]:
    """The claims about one side alone."""
    points, metric, judged = _points(group), primary(group.rows), quality(group, gate)
    for (target, approach), row in points.items():
        if row["strategy"] != CHAMPION:
            continue
        its = judged.get(id(row))
        if its and metric:
            verdict = TIE if not its.sure else HOLDS if its.passes else FAILS
            share = _share(its) + ("" if its.measured else " (no interval)")
            yield f"{approach} keeps {gate:.0%} of full's {METRICS[metric]} at {target:g}x", Judged(share, verdict)
        if row.get("measured_speedup_low") is not None:
            clock = Difference(row["measured_speedup"], row["measured_speedup_low"], row["measured_speedup_high"], "")
            yield f"{approach} decodes faster than full at {target:g}x", Judged(speed(row), clock.verdict(1.0))
        for (at, rival), other in points.items():
            if at != target or other["strategy"] in (CHAMPION, "full") or not shared_metric([row, other], metric):
                continue
            assert metric is not None
            apart = scorer.difference(row, other, metric)
            figures = f"{row[metric]:.2f} against {other[metric]:.2f}, {_ends(apart, '+.2f')}"
            yield f"{approach} beats {rival} in {METRICS[metric]} at {target:g}x", Judged(figures, apart.verdict())


def _again(group: Group, before: Group, scorer: Scorer, tolerance: float) -> Iterator[tuple[str, Judged]]:
    """The claims that a measurement made again gives the same."""
    old, metric = _points(before), primary(group.rows)
    for (target, approach), row in _points(group).items():
        former = old.get((target, approach))
        if former is None:
            continue
        name = f"{approach} at {target:g}x" if approach != "full" else "full"
        if shared_metric([row, former], metric):
            assert metric is not None
            apart = scorer.difference(row, former, metric)
            if apart.low is None and apart.value:
                continue  # other examples: neither the same nor another score
            figures = f"{row[metric]:.2f} against {former[metric]:.2f}, {_ends(apart, '+.2f')}"
            yield f"{name}: {METRICS[metric]} as before", Judged(figures, _unchanged(apart))
        ratio = speed_ratio(row, former)
        if ratio and approach != "full":
            figures = f"{row['measured_speedup']:.2f}x against {former['measured_speedup']:.2f}x, ratio {_ends(ratio, '.2f')}"
            yield f"{name}: measured speedup within {tolerance:.0%} of before", Judged(figures, _within(ratio, tolerance))


def _unchanged(apart: Difference) -> str:
    """Holds for the same answers; what only the interval does not tell apart is a tie."""
    if apart.low is None or apart.high is None:
        return HOLDS if apart.value == 0 else TIE
    return HOLDS if apart.low == apart.high == 0 else TIE if apart.low <= 0 <= apart.high else FAILS


def _within(ratio: Difference, tolerance: float) -> str:
    assert ratio.low is not None and ratio.high is not None
    low, high = math.log(1 - tolerance), -math.log(1 - tolerance)  # the same room in both directions
    ends = (math.log(ratio.low), math.log(ratio.high))
    if low <= ends[0] and ends[1] <= high:
        return HOLDS
    return FAILS if ends[0] > high or ends[1] < low else TIE


def _share(its: Any) -> str:
    return kept(its, METRICS[its.metric]).rpartition(" of full's ")[0]


def _ends(one: Difference, form: str) -> str:
    if one.low is None or one.high is None:
        return f"{one.value:{form}} ({one.how})"
    if one.low == one.high:
        return one.how
    on = f" {one.how.removeprefix('paired bootstrap ')}" if "shared" in one.how else ""
    return f"{one.value:{form}} ({one.low:{form}} to {one.high:{form}}){on}"
