"""Verdicts on points: the winners of a group and of each model, and the comparison of two results
folders.

A winner is the fastest point of a batch size or the best quality of a target, by the rule that
`RULE` states.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

from ulskip_cli.experiments.intervals import CONFIDENCE, NORMAL, Interval
from ulskip_cli.experiments.record import MIN_FOR_STARS, UNLIKE, Column, Record
from ulskip_cli.experiments.settings import Key, Settings, all_settings
from ulskip_cli.experiments.statistics import (
    FAILS,
    GATE,
    HOLDS,
    TIE,
    TITLES,
    QualityShare,
    difference,
    from_records,
    may_gain,
    primary,
    sentence,
    shares,
    speed_ratio,
    speedup_text,
    unchanged,
    verdict,
    within,
)
from ulskip_cli.report.rows import Group, collected, done, grouped
from ulskip_cli.report.tables import Shares, TableSection, ends, sentences

CHANGES = {HOLDS: "faster", FAILS: "slower", TIE: "undecided"}
TOLERANCE = 0.15  # relative difference that two measurements of a speedup may have
MAX_LEADS = 3  # sentences before the table of a sweep
MAX_BOOTSTRAPS = 200
RULE = (
    "A winner keeps {gate} of the full model's score, either by its whole 95% interval or without a"
    " significant loss in any metric, and is faster by the whole interval of its speedup. Points"
    " that the intervals do not separate are a tie."
)
NOTE = (
    "Quality: new minus old; speedup: new divided by old. A star (*) marks a 95% interval that"
    " excludes no difference, for each comparison and not corrected for their number. Intervals of"
    " quality come from a paired bootstrap if both sides' answers are stored, else from the rows"
)


Figures = list[tuple[Record, str]]  # records that tie, with their figures


@dataclass(frozen=True)
class Winner:
    """The best of the points that can win."""

    title: str
    points: list[tuple[str, str]]  # names and figures of all that tie, best first
    note: str = ""

    def line(self) -> str:
        """Return the winner in one line; a tie has names without figures."""
        names = [name for name, _ in self.points]
        if not names:
            return f"{self.title}: {self.note}"
        best = ", ".join(self.points[0]) if len(names) == 1 else f"a tie of {', '.join(names)}"
        return f"{self.title}: {best}{f' ({self.note})' if self.note else ''}"


def winners(group: Group, gate: float) -> list[Winner]:
    """Find the winners of a group by `RULE`; a point with the speed of one depth and the quality of
    another cannot win.
    """
    judged = shares(group.records, gate)
    scored = [record for record in group.done if record.key in judged and not record.keeps_all]
    scored = [record for record in scored if not record.has_two_depths]
    asked = [record for record in scored if record.target_speedup]
    smallest = min((record.batch_size for record in asked), default=0)
    timed = [record for record in scored if record.speedup]
    contests = [
        (f"fastest at batch {size}", _fastest, rivals)
        for size, rivals in sorted(collected(timed, lambda record: record.batch_size).items())
    ]
    first = [record for record in asked if record.batch_size == smallest]
    by_target = collected(first, lambda record: record.target_speedup or 0.0)
    contests += [
        (f"best {judged[rivals[0].key].title} at target {target:g}x", _best, rivals)
        for target, rivals in sorted(by_target.items())
    ]
    found = []
    for title, choose, rivals in contests:
        passing = [record for record in rivals if judged[record.key].can_win]
        faster = [record for record in passing if may_gain(record)]
        tied = choose(faster, judged) if faster else []
        points = [(group.called(record), figures) for record, figures in tied]
        found.append(Winner(title, points, "" if faster else _why_none(rivals, passing, judged)))
    return found


def _fastest(records: Sequence[Record], judged: Shares) -> Figures:
    ranked = sorted(records, key=lambda record: -(record.measured_speedup or 0.0))
    low = ranked[0].measured_speedup_low or 0.0
    return [
        (record, f"{speedup_text(record)}, {_kept(judged[record.key])}")
        for record in ranked
        if (record.measured_speedup_high or 0.0) >= low
    ]


def _best(records: Sequence[Record], judged: Shares) -> Figures:
    first, *others = sorted(records, key=lambda record: -judged[record.key].share)
    metric = judged[first.key].metric
    tied = [first, *(row for row in others if verdict(from_records(first, row, metric)) == TIE)]
    kept = [(record, judged[record.key]) for record in tied]
    return [(record, f"{share.value:.2f}, {_kept(share)}") for record, share in kept]


def _kept(share: QualityShare) -> str:
    basis = "" if share.sure else ", no significant loss"
    return f"{share.text()} of full's {share.title}{basis}"


def _why_none(records: Sequence[Record], passing: Sequence[Record], judged: Shares) -> str:
    if passing:
        are_known = all(record.speedup and record.speedup.low is not None for record in passing)
        tested = "" if are_known else " by enough timed pairs"
        return f"no measurable gain: no point that keeps the score is faster than full{tested}"
    unsure = [record for record in records if judged[record.key].passes]
    surely, first = "surely " * bool(unsure), judged[records[0].key]
    note = f"no point {surely}keeps {first.gate:.0%} of full's {first.title}"
    if any(record.has_few_examples for record in unsure):
        note += f"; fewer than {MIN_FOR_STARS} examples are too few for an interval"
    elif unsure:
        count = f"{len(unsure)} point{'s' * (len(unsure) > 1)}"
        note += f"; {first.gate:.0%} lies in the intervals of {count}, or these are not known"
    has_more = any(
        record.config.limit and record.num_examples == record.config.limit for record in unsure
    )
    return f"{note}{', so raise limit to use more examples' * has_more}"


def two_depths(group: Group) -> Iterator[str]:
    """Yield a warning for every point whose speed is of another depth than its quality."""
    for record in group.done:
        if record.has_two_depths:
            timed = "timed" if record.speedup else "planned"
            yield (
                f"{group.called(record)} at batch {record.batch_size} was {timed} with a mean of"
                f" {record.mean_kept_layers:.1f} layers, and its answers ran {record.summary}, so"
                " its speed and its quality do not belong together: it cannot win, and is not in"
                " the plot"
            )


def unlike_states(group: Group) -> Iterator[str]:
    """Yield a warning for every batch size whose rows were timed in unlike states of one
    machine.
    """
    milliseconds = dict[tuple[object, ...], list[float]]()
    for record in group.done:
        if record.environment and record.full_step_seconds:
            same = record.batch_size, record.engine, record.environment.machine
            milliseconds.setdefault(same, []).append(record.full_step_seconds * 1e3)
    for (batch, *_), steps in milliseconds.items():
        if max(steps) > UNLIKE * min(steps):
            yield (
                f"batch {batch}: a step of the full model took {min(steps):.3g} to"
                f" {max(steps):.3g} ms when these rows were timed, so the machine was in unlike"
                " states, in which speedups can differ; time the rows again to compare them closely"
            )


def lead(records: Sequence[Record]) -> list[str]:
    """Return the result of a sweep in one sentence for every setting and batch size: the fastest
    point that can win.
    """
    groups = grouped(records)
    lines = [
        f"{f'{group.label}: ' * (len(groups) > 1)}{winner.line()}."
        for group in groups
        for winner in winners(group, GATE)
        if winner.title.startswith("fastest")
    ]
    return lines[:MAX_LEADS] or [sentence(records[-1])]


@dataclass(frozen=True)
class ComparedPair:
    """A point that both sides of a comparison contain."""

    old: Record
    new: Record
    metric: str
    quality: Interval | None  # new minus old; positive is better
    speedup: Interval | None  # new divided by old
    tolerance: float
    gate: float

    @property
    def verdict(self) -> str | None:
        """The claim that the new side has the score of the old one, and its speedup within the
        tolerance.
        """
        judged = []
        quality = self.quality
        if quality and (quality.low is not None or not quality.value):  # else the examples differ
            judged.append(unchanged(quality))
        if self.speedup and not self.new.keeps_all:
            judged.append(within(self.speedup, self.tolerance))
        return next((word for word in (FAILS, TIE, HOLDS) if word in judged), None)

    @property
    def change(self) -> str | None:
        """The claim that the new side decodes faster than the old one, each relative to its full
        model: faster, slower or undecided.
        """
        is_timed = self.speedup and not self.new.keeps_all
        return CHANGES[verdict(self.speedup, 1.0)] if self.speedup and is_timed else None

    def got_worse(self, count: int) -> Iterator[str]:
        """Yield what got worse beyond noise, among `count` comparisons of which none may fail by
        chance (Bonferroni).
        """
        z = NormalDist().inv_cdf(1 - (1 - CONFIDENCE) / 2 / count)
        for what, interval, bound in (
            ("speed", None if self.new.keeps_all else self.speedup, 1.0),
            (TITLES.get(self.metric, self.metric), self.quality, 0.0),
        ):
            if interval and interval.high is not None:
                distance = (interval.high - interval.value) * z / NORMAL
                if interval.value + distance < bound:
                    yield what

    @property
    def is_faster(self) -> str | None:
        """The claim that the new side decodes faster than its full model."""
        speedup = None if self.new.keeps_all else self.new.speedup
        return verdict(speedup, 1.0) if speedup else None

    @property
    def keeps(self) -> str | None:
        """The claim that the new side keeps the gate's share of its full model's quality."""
        share = shares([self.new], self.gate).get(self.new.key)
        return share.verdict if share and not self.new.keeps_all else None


@dataclass(frozen=True)
class Comparison:
    """The points that both new and old records contain, in the order of the new ones, and the
    number of unmatched points.
    """

    pairs: list[ComparedPair]
    only_old: int
    only_new: int
    differs: list[Key]  # settings in which the sides share no value

    def losses(self) -> list[str]:
        """Say of every point that got worse beyond noise what got worse."""
        count = sum(1 for pair in self.pairs for side in (pair.speedup, pair.quality) if side)
        return [
            f"{pair.new.label} {pair.new.target_speedup:g}x, batch {pair.new.batch_size}: {what}"
            for pair in self.pairs
            for what in pair.got_worse(count)
        ]

    def section(self, title: str) -> TableSection:
        """Make the table of a comparison, one line per point."""
        names = {TITLES[pair.metric] for pair in self.pairs if pair.metric}
        name = names.pop() if len(names) == 1 else "quality"

        columns = [
            Column("approach", "", "new.label"),
            Column("target", ".4g", "new.target_speedup"),
            Column("batch", "", "new.batch_size"),
            Column(f"{name}\nold", ".2f", lambda pair: pair.old.value(pair.metric), True),
            Column(f"{name}\nnew", ".2f", lambda pair: pair.new.value(pair.metric)),
            Column("minus\nold", "", lambda pair: _starred(pair.quality, "+.2f", 0.0)),
            Column("minus old,\n95%", "", lambda pair: ends(pair.quality, "+.2f"), True),
            Column("speedup\nold", ".2f", "old.measured_speedup", True),
            Column("speedup\nnew", ".2f", "new.measured_speedup"),
            Column("over\nold", "", lambda pair: _starred(pair.speedup, ".2f", 1.0)),
            Column("over old,\n95%", "", lambda pair: ends(pair.speedup), True),
            Column("speed", "", "change"),
            Column(f"keeps\n{self.pairs[0].gate:.0%}", "", "keeps"),
            Column("faster\nthan full", "", "is_faster"),
            Column("as\nbefore", "", "verdict"),
        ]
        allowed = f"{self.pairs[0].tolerance:.0%}"
        notes = [NOTE, f"As before: the same answers, and a speedup within {allowed}"]
        if self.differs:
            titles = dict.fromkeys(key.title for key in self.differs)
            notes.append(f"The sides differ in {', '.join(titles)}")
        counts = {"old": self.only_old, "new": self.only_new}
        notes += [f"Points only on the {side} side: {n}" for side, n in counts.items() if n]
        return TableSection.of(title, self.pairs, columns, sentences(notes), words=1)


def compare(
    new: Sequence[Record], old: Sequence[Record], tolerance: float, gate: float
) -> Comparison:
    """Match the finished points of new and old records, and compare each pair.

    Two points match if they agree in every setting, except settings of which the two sides share no
    value (for example two seeds).
    """
    found = [done(new), done(old)]
    rows = iter(all_settings([*found[0], *found[1]]))
    sides = [[(record, _values(next(rows))) for record in side] for side in found]
    keys = dict.fromkeys(key for side in sides for _, values in side for key in values)
    differs = []
    for key in keys:
        mine, theirs = ({values[key] for _, values in side if key in values} for side in sides)
        if mine and theirs and not mine & theirs:
            differs.append(key)
    same = [key for key in keys if key not in differs]
    now, before = (
        {tuple(values.get(key) for key in same): record for record, values in side}
        for side in sides
    )
    pairs = list[ComparedPair]()
    for values in filter(before.__contains__, now):
        mine, theirs = now[values], before[values]
        metric, quality = primary([mine, theirs]) or "", None
        if mine.value(metric) is not None and theirs.value(metric) is not None:
            judge = difference if len(pairs) < MAX_BOOTSTRAPS else from_records
            quality = judge(mine, theirs, metric)
        ratio = speed_ratio(mine, theirs)
        pairs.append(ComparedPair(theirs, mine, metric, quality, ratio, tolerance, gate))
    return Comparison(pairs, len(before) - len(pairs), len(now) - len(pairs), differs)


def _values(settings: Settings) -> dict[Key, str]:
    return {key: repr(value) for key, value in settings.items() if key.name != "folder"}


def _starred(interval: Interval | None, form: str, bound: float) -> str | None:
    if interval is None:
        return None
    return f"{interval.value:{form}}{'*' * (verdict(interval, bound) != TIE)}"
