"""Judge the paper's claims about unified skipping; each claim gets the measured values and a verdict."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ulskip_cli.experiments.record import Row
from ulskip_cli.report.columns import Column, Section, speed_ends, text
from ulskip_cli.report.compare import shared_keys
from ulskip_cli.report.corrections import strategy_name
from ulskip_cli.report.difference import FAILS, HOLDS, TIE, Difference, Scorer, shared_metric, speed_ratio
from ulskip_cli.report.quality import METRICS, primary, quality, speed
from ulskip_cli.report.rows import SETTINGS, Group, done, grouped, knows, setting_keys

TOLERANCE = 0.15
PAPER_STRATEGY = "unified"
CLAIM_KEYS = ("model", "task", "pair", "dataset", "decoding")  # settings that both sides of a claim share


@dataclass(frozen=True)
class Verdict:
    """The measured values for a claim, and a verdict: holds, does not hold, or a tie if the interval allows both."""

    figures: str
    verdict: str


@dataclass(frozen=True)
class ClaimVerdict:
    """A claim with its verdicts on the new rows and on the old rows."""

    setting: str  # the settings that the rows share; empty if all rows share one
    text: str
    new: Verdict
    old: Verdict | None  # None if the claim is about both sides, or the old side lacks the points


@dataclass(frozen=True)
class Judge:
    """Judges the paper's claims with a quality gate and a tolerance for repeated measurements."""

    gate: float  # share of full's quality that counts as kept
    scorer: Scorer
    tolerance: float = TOLERANCE  # relative difference allowed between two measurements of a speedup

    def judge(self, new: Sequence[Row], old: Sequence[Row]) -> list[ClaimVerdict]:
        """Judge the paper's claims on new and on old rows, and the claim that `new` repeats `old`; `old` may be empty."""
        groups, former = grouped(done(new)), grouped(done(old))
        rest = [key for key in (*SETTINGS, *setting_keys([*new, *old])) if key not in (*CLAIM_KEYS, "folder")]
        keys = [*CLAIM_KEYS, *shared_keys(done(new), done(old), rest)[0]]
        found = []
        for group in groups:
            alike = [one for one in former if _setting(one, keys) == _setting(group, keys)]
            other = alike[0] if len(alike) == 1 else None  # with several matches, none is the right one
            theirs = dict(self._own(other)) if other else {}
            label = group.label if len(groups) > 1 else ""
            found += [
                ClaimVerdict(label, claim, verdict, theirs.get(claim)) for claim, verdict in dict(self._own(group)).items()
            ]
            again = self._again(group, other) if other else ()
            found += [ClaimVerdict(label, claim, verdict, None) for claim, verdict in again]
        return found

    def _own(self, group: Group) -> Iterator[tuple[str, Verdict]]:
        """Judge the paper's claims on the rows of one group."""
        points, metric, judged = _points(group), primary(group.rows), quality(group, self.gate)
        for (target, approach), row in points.items():
            if strategy_name(row) != PAPER_STRATEGY:
                continue
            its = judged.get(id(row))
            if its and metric:
                verdict = TIE if not its.sure else HOLDS if its.passes else FAILS
                share = its.text() + ("" if its.low is not None else " (no interval)")
                yield f"{approach} keeps {self.gate:.0%} of full's {METRICS[metric]} at {target:g}x", Verdict(share, verdict)
            if row.get("measured_speedup") is not None:
                low, high = speed_ends(row)
                clock = Difference(row["measured_speedup"], low, high, "")
                yield f"{approach} decodes faster than full at {target:g}x", Verdict(speed(row), clock.verdict(1.0))
            for (at, rival), other in points.items():
                is_rival = at == target and strategy_name(other) not in (PAPER_STRATEGY, "full")
                if is_rival and (shared := shared_metric([row, other], metric)):
                    apart, figures = self._compare(row, other, shared)
                    yield f"{approach} beats {rival} in {METRICS[shared]} at {target:g}x", Verdict(figures, apart.verdict())

    def _compare(self, own: Row, other: Row, metric: str) -> tuple[Difference, str]:
        apart = self.scorer.difference(own, other, metric)
        return apart, f"{own[metric]:.2f} against {other[metric]:.2f}, {apart.text('+.2f')}"

    def _again(self, group: Group, before: Group) -> Iterator[tuple[str, Verdict]]:
        """Judge the claims that the rows of `group` repeat the scores and speedups of `before`."""
        old, metric = _points(before), primary(group.rows)
        for (target, approach), row in _points(group).items():
            former = old.get((target, approach))
            if former is None:
                continue
            name = f"{approach} at {target:g}x" if approach != "full" else "full"
            if shared := shared_metric([row, former], metric):
                apart, figures = self._compare(row, former, shared)
                if apart.low is None and apart.value:
                    continue  # the examples differ, so the scores are not comparable
                yield f"{name}: {METRICS[shared]} as before", Verdict(figures, _unchanged(apart))
            ratio = speed_ratio(row, former)
            if ratio and approach != "full":
                speeds = f"{row['measured_speedup']:.2f}x against {former['measured_speedup']:.2f}x"
                verdict = Verdict(f"{speeds}, ratio {ratio.text('.2f')}", _within(ratio, self.tolerance))
                yield f"{name}: measured speedup within {self.tolerance:.0%} of before", verdict


def _setting(group: Group, keys: Sequence[str]) -> list[str]:
    return [next((str(row[key]) for row in group.rows if knows(row, key)), "") for key in keys]


def _points(group: Group) -> dict[tuple[float, str], Row]:
    """Return the finished row with the smallest batch size, by target and approach."""
    return {point: by_batch[min(by_batch)] for point, by_batch in sorted(group.points().items())}


def _unchanged(apart: Difference) -> str:
    """Judge the claim that a score is unchanged: it holds at a zero difference, and is a tie if the interval contains zero."""
    if apart.low is None or apart.high is None:
        return HOLDS if apart.value == 0 else TIE
    return HOLDS if apart.low == apart.high == 0 else TIE if apart.low <= 0 <= apart.high else FAILS


def _within(ratio: Difference, tolerance: float) -> str:
    if ratio.low is None or ratio.high is None:
        return TIE
    room = -math.log(1 - tolerance)  # symmetric for faster and slower
    low, high = math.log(ratio.low), math.log(ratio.high)
    if -room <= low and high <= room:
        return HOLDS
    return FAILS if low > room or high < -room else TIE


def claims_section(title: str, found: Sequence[ClaimVerdict]) -> Section:
    """Make the table of claims, one line per claim."""
    heads = ("claim", "setting", "verdict", "figures", "verdict before", "figures before")
    lines: list[Row] = []
    for claim in found:
        cells = [claim.text, claim.setting, claim.new.verdict, claim.new.figures]
        cells += [claim.old.verdict, claim.old.figures] if claim.old else []
        lines.append(dict(zip(heads, cells, strict=False)))
    columns = [Column(head, text(head), head) for head in heads if any(line.get(head) for line in lines)]
    return Section(title, lines, columns, summary(found), sentences=True)


def summary(found: Sequence[ClaimVerdict]) -> str:
    """Count the claims by verdict.

    >>> summary([ClaimVerdict("", "a", Verdict("1", "holds"), None)])
    '1 of 1 claims holds'
    """
    hold, tie, fail = (sum(claim.new.verdict == verdict for claim in found) for verdict in (HOLDS, TIE, FAILS))
    first = f"{hold} of {len(found)} claims {'holds' if hold == 1 else 'hold'}"
    return ", ".join([first, *[f"{tie} tie"] * bool(tie), *[f"{fail} do not hold"] * bool(fail)])
