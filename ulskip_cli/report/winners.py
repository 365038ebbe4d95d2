"""Winners: the fastest point per batch size and the best quality per target, among points that
surely pass the quality gate.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ulskip_cli.experiments.record import MIN_FOR_STARS, Record
from ulskip_cli.experiments.statistics import (
    FEW_PAIRS,
    GATE,
    TITLES,
    Share,
    apart,
    sentence,
    shares,
    speedup_text,
)
from ulskip_cli.report.rows import Group, grouped

MAX_LEADS = 3  # sentences before the table of a sweep

Shares = Mapping[tuple[str, str], Share]


@dataclass(frozen=True)
class Winner:
    """The best of the points that pass the gate."""

    title: str
    records: list[Record]  # the winner, or all that tie, best first; empty if none passes
    names: list[str]
    figures: list[str]
    note: str = ""

    @property
    def tie(self) -> bool:
        """True if several points win because their intervals do not separate them."""
        return len(self.records) > 1

    def as_dict(self) -> dict[str, Any]:
        """Return the winner as plain values."""
        values = {
            "title": self.title,
            "tie": self.tie,
            "names": self.names,
            "ids": [record.id for record in self.records],
        }
        return {**values, "figures": self.figures, "note": self.note}

    def line(self, most: int | None = None) -> str:
        """Return the winner in one line, with the figures of every point, or with at most so many
        names.
        """
        note = f" ({self.note})" if self.note and self.names else self.note
        if most is None:
            figures = "; ".join(
                f"{name} {figure}" for name, figure in zip(self.names, self.figures, strict=True)
            )
            return f"{self.title}: {'a tie of ' if self.tie else ''}{figures}{note}"
        names = ", ".join(self.names[:most]) + (
            f" and {len(self.names) - most} more" if len(self.names) > most else ""
        )
        figures = f", {self.figures[0]}" if len(self.figures) == 1 else ""
        return f"{self.title}: {'tie: ' * self.tie}{names}{figures}{note}"


def winners(group: Group, gate: float) -> list[Winner]:
    """Find the winners of a group."""
    judged = shares(group.records, gate)
    records = [record for record in group.done if not record.keeps_all and record.key in judged]
    if not records:
        return []
    metric = judged[records[0].key].metric
    chosen = []
    timed = [
        record
        for record in group.done
        if not record.keeps_all and record.measured_speedup is not None
    ]
    for batch in sorted({record.batch_size for record in timed}):
        rivals = [record for record in timed if record.batch_size == batch and record.key in judged]
        passing = [record for record in rivals if judged[record.key].can_win]
        title = f"fastest at batch {batch}"
        chosen.append(
            _fastest(title, group, passing, judged)
            if passing
            else _nothing(title, metric, gate, rivals, judged)
        )
    scored = [record for record in records if record.target_speedup]
    smallest = min((record.batch_size for record in scored), default=None)
    scored = [record for record in scored if record.batch_size == smallest]
    for target in sorted({record.target_speedup or 0.0 for record in scored}):
        rivals = [record for record in scored if record.target_speedup == target]
        passing = [record for record in rivals if judged[record.key].can_win]
        title = f"best {TITLES[metric]} at {target:g}x"
        chosen.append(
            _best(title, group, passing, judged)
            if passing
            else _nothing(title, metric, gate, rivals, judged)
        )
    return chosen


def lead(records: Sequence[Record]) -> list[str]:
    """Return the result of a sweep in one sentence for every setting and batch size: the fastest
    point that passes the gate.
    """
    lines = []
    groups = grouped(records)
    for group in groups:
        label = f"{group.label}: " if len(groups) > 1 else ""
        fastest = [winner for winner in winners(group, GATE) if winner.title.startswith("fastest")]
        lines += [f"{label}{winner.line(1)}." for winner in fastest]
    return lines[:MAX_LEADS] or [sentence(records[-1])]


def _nothing(
    title: str, metric: str, gate: float, records: Sequence[Record], judged: Shares
) -> Winner:
    unsure = [record for record in records if judged[record.key].passes]
    note = f"no point {'surely ' * bool(unsure)}keeps {gate:.0%} of full's {TITLES[metric]}"
    if any(record.has_few_examples for record in unsure):
        note += f"; fewer than {MIN_FOR_STARS} examples are too few for an interval, so raise limit"
    elif unsure:
        note += (
            f"; the intervals of {len(unsure)} points include the gate or are not known, so use"
            " more examples"
        )
    return Winner(title, [], [], [], note)


def _fastest(title: str, group: Group, records: Sequence[Record], judged: Shares) -> Winner:
    ranked = sorted(records, key=lambda record: -(record.measured_speedup or 0.0))
    ends = {record.key: record.speedup for record in ranked}
    low = ranked[0].speedup.low if ranked[0].speedup else None
    equal = []
    for record in ranked:
        high = record.speedup.high if record.speedup else None
        if low is None or high is None or high >= low:
            equal.append(record)
    unknown = any(
        speedup is None or speedup.low is None for record in equal for speedup in [ends[record.key]]
    )
    notes = [f"{FEW_PAIRS}, so raise speed.pairs"] if unknown else []
    notes += (
        ["its interval includes 1x, so it may not be faster than full"]
        if low is not None and low <= 1
        else []
    )
    note = "; ".join(filter(None, [*notes, judged[ranked[0].key].caveat]))
    figures = [f"{speedup_text(record)}, {_kept(judged[record.key])}" for record in equal]
    return Winner(title, equal, list(map(group.called, equal)), figures, note)


def _best(title: str, group: Group, records: Sequence[Record], judged: Shares) -> Winner:
    first, *others = sorted(records, key=lambda record: -judged[record.key].share)
    equal = [
        first,
        *(record for record in others if not apart(first, record, judged[first.key].metric)),
    ]
    rivals = {
        record.strategy_name
        for record in group.records
        if record.target_speedup == first.target_speedup
    }
    notes = ["the only point that passes"] if not others and len(rivals) > 1 else []
    figures = [f"{judged[record.key].value:.2f}, {_kept(judged[record.key])}" for record in equal]
    note = "; ".join(filter(None, [*notes, judged[first.key].caveat]))
    return Winner(title, equal, list(map(group.called, equal)), figures, note)


def _kept(share: Share) -> str:
    return f"{share.text()} of full's {share.title}"
