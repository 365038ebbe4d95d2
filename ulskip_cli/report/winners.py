"""Winners: the fastest point per batch size and the best quality per target, among points that
surely pass the quality gate.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ulskip_cli.experiments.record import MIN_FOR_STARS, MISSING, Record
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
from ulskip_cli.report.rows import Group, default_of, grouped
from ulskip_cli.report.tables import Head, Section

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
    def word(self) -> str:
        """The verdict: winner if the speedup of a single point is surely above 1."""
        if len(self.records) != 1:
            return "tie" if self.records else "none"
        speedup = self.records[0].speedup
        return "winner" if speedup and (speedup.low or 0.0) > 1 else "unsure"

    @property
    def points(self) -> list[tuple[str, str]]:
        """The names with their figures."""
        return list(zip(self.names, self.figures, strict=True))

    def line(self, most: int | None = None) -> str:
        """Return the winner in one line, with the figures of every point, or with at most so many
        names.
        """
        is_tie = len(self.records) > 1
        note = f" ({self.note})" if self.note and self.names else self.note
        if most is None:
            figures = "; ".join(f"{name} {figure}" for name, figure in self.points)
            return f"{self.title}: {'a tie of ' * is_tie}{figures}{note}"
        names, more = ", ".join(self.names[:most]), len(self.names) - most
        if len(self.names) == 1:
            names += f", {self.figures[0]}"
        names += f" and {more} more" if more > 0 else ""
        return f"{self.title}: {'tie: ' * is_tie}{names}{note}"


def winners(group: Group, gate: float) -> list[Winner]:
    """Find the winners of a group; a point that is slower than the full model cannot win."""
    judged = shares(group.records, gate)
    points = [record for record in group.done if not record.keeps_all]
    scored = [record for record in points if record.key in judged]
    if not scored:
        return []
    title = TITLES[judged[scored[0].key].metric]
    smallest = min((record.batch_size for record in scored if record.target_speedup), default=0)
    contests: dict[str, list[Record]] = {}
    for size in sorted({record.batch_size for record in points if record.speedup}):
        contests[f"fastest at batch {size}"] = [
            record for record in scored if record.batch_size == size and record.speedup
        ]
    at_smallest = [record for record in scored if record.batch_size == smallest]
    for target in sorted({record.target_speedup or 0.0 for record in at_smallest} - {0.0}):
        contests[f"best {title} at {target:g}x"] = [
            record for record in at_smallest if record.target_speedup == target
        ]
    found = []
    for name, rivals in contests.items():
        passing = [record for record in rivals if judged[record.key].can_win]
        faster = [record for record in passing if (record.measured_speedup or 2.0) > 1]
        if faster:
            choose = _fastest if name.startswith("fastest") else _best
            found.append(choose(name, group, faster, judged))
        elif passing:
            found.append(Winner(name, [], [], [], "no point that passes is faster than full"))
        else:
            found.append(Winner(name, [], [], [], _why_none(title, gate, rivals, judged)))
    return found


def overview(groups: Sequence[Group], gate: float) -> Section:
    """Make the table with the best point of every model and target: the fastest point that surely
    passes the gate, or else the best quality among points that are faster than full.
    """
    best: dict[tuple[str, float], tuple[tuple[bool, bool, float], list[str]]] = {}
    for group in groups:
        judged = shares(group.records, gate)
        for record in group.done:
            share = judged.get(record.key)
            if share and not record.keeps_all:
                speedup, target = record.measured_speedup or 0.0, record.target_speedup or 0.0
                passes = share.can_win and speedup > 1
                rank = passes, speedup > 1, speedup if passes else share.share
                cells = [
                    str(record.model),
                    f"{target:g}x" if target else MISSING,
                    group.approach(record),
                    group.label,
                    f"{speedup:.2f}" if speedup else MISSING,
                    f"{share.share:.1%}",
                    share.word,
                ]
                point = cells[0], target
                best[point] = max(best.get(point, (rank, cells)), (rank, cells))
    heads = [Head(name) for name in ("model", "target", "best point")]
    heads += [Head("setting", 1), Head("measured"), Head("of full"), Head(f"keeps {gate:.0%}")]
    note = (
        "The fastest point that surely passes the quality gate, or else the best quality of the"
        " points that are faster than full. A question mark: the interval includes the gate."
    )
    cells_by_point = [best[point][1] for point in sorted(best)]
    return Section("Best of each model and target", heads, cells_by_point, note, words=4)


def lead(records: Sequence[Record]) -> list[str]:
    """Return the result of a sweep in one sentence for every setting and batch size: the fastest
    point that passes the gate.
    """
    groups = grouped(records)
    lines = [
        f"{f'{group.label}: ' * (len(groups) > 1)}{winner.line(1)}."
        for group in groups
        for winner in winners(group, GATE)
        if winner.title.startswith("fastest")
    ]
    return lines[:MAX_LEADS] or [sentence(records[-1])]


def _why_none(title: str, gate: float, records: Sequence[Record], judged: Shares) -> str:
    unsure = [record for record in records if judged[record.key].passes]
    note = f"no point {'surely ' * bool(unsure)}keeps {gate:.0%} of full's {title}"
    if any(record.has_few_examples for record in unsure):
        note += f"; fewer than {MIN_FOR_STARS} examples are too few for an interval"
    elif unsure:
        count = f"{len(unsure)} point{'s' * (len(unsure) > 1)}"
        note += f"; the intervals of {count} include the gate or are not known"
    limits = [(record, record.config.get("limit", default_of("limit"))) for record in unsure]
    has_more = any(limit and record.num_examples == limit for record, limit in limits)
    return f"{note}{', so raise limit to use more examples' * has_more}"


def _fastest(title: str, group: Group, records: Sequence[Record], judged: Shares) -> Winner:
    ranked = sorted(records, key=lambda record: -(record.measured_speedup or 0.0))
    ends = [(record, record.speedup and record.speedup.high) for record in ranked]
    low = ranked[0].speedup and ranked[0].speedup.low
    equal = [record for record, high in ends if low is None or high is None or high >= low]
    notes = []
    if any(record.speedup and record.speedup.low is None for record in equal):
        notes.append(f"{FEW_PAIRS}, so raise speed.pairs")
    if low is not None and low <= 1:
        notes.append("its interval includes 1x, so it may not be faster than full")
    figures = [f"{speedup_text(record)}, {_kept(judged[record.key])}" for record in equal]
    return _winner(title, group, equal, figures, [*notes, judged[ranked[0].key].caveat])


def _best(title: str, group: Group, records: Sequence[Record], judged: Shares) -> Winner:
    first, *others = sorted(records, key=lambda record: -judged[record.key].share)
    share = judged[first.key]
    equal = [first, *(record for record in others if not apart(first, record, share.metric))]
    rivals = defaultdict(set)
    for record in group.records:
        rivals[record.target_speedup].add(record.strategy_name)
    is_only = not others and len(rivals[first.target_speedup]) > 1
    figures = [f"{judged[record.key].value:.2f}, {_kept(judged[record.key])}" for record in equal]
    notes = ["the only point that passes"] * is_only
    return _winner(title, group, equal, figures, [*notes, share.caveat])


def _winner(
    title: str, group: Group, records: list[Record], figures: list[str], notes: Sequence[str]
) -> Winner:
    names = list(map(group.called, records))
    return Winner(title, records, names, figures, "; ".join(filter(None, notes)))


def _kept(share: Share) -> str:
    return f"{share.text()} of full's {share.title}"
