"""Comparison of two results folders, point by point, with a verdict for every difference."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ulskip_cli.experiments.record import MISSING, Record
from ulskip_cli.experiments.statistics import (
    FAILS,
    HOLDS,
    TIE,
    TITLES,
    Difference,
    Scorer,
    from_records,
    primary,
    shares,
    speed_ratio,
    unchanged,
    verdict,
    within,
)
from ulskip_cli.report.rows import UNKNOWN, done, setting_title, settings_table
from ulskip_cli.report.tables import Head, Section, sentences

TOLERANCE = 0.15  # relative difference that two measurements of a speedup may have
MAX_BOOTSTRAPS = 200
NOTE = (
    "Quality: new minus old; speedup and tok/s: new divided by old. A star (*) marks a 95% interval"
    " that excludes no difference, for each comparison and not corrected for their number."
    " Intervals of quality come from a paired bootstrap if both sides' answers are stored, else"
    " from the rows. Tokens/s are single measurements without an interval."
)


@dataclass(frozen=True)
class Pair:
    """A point that both sides contain."""

    old: Record
    new: Record
    metric: str
    quality: Difference | None  # new minus old; positive is better
    speedup: Difference | None  # new divided by old
    tolerance: float
    gate: float

    @property
    def verdict(self) -> str:
        """The claim that the new side has the score of the old one, and its speedup within the
        tolerance.
        """
        judged = []
        if self.quality and not (
            self.quality.low is None and self.quality.value
        ):  # else the examples differ
            judged.append(unchanged(self.quality))
        if self.speedup and not self.new.keeps_all:
            judged.append(within(self.speedup, self.tolerance))
        return next((word for word in (FAILS, TIE) if word in judged), HOLDS if judged else MISSING)

    @property
    def is_faster(self) -> str:
        """The claim that the new side decodes faster than its full model."""
        speedup = None if self.new.keeps_all else self.new.speedup
        return verdict(speedup, 1.0) if speedup else MISSING

    @property
    def keeps(self) -> str:
        """The claim that the new side keeps the gate's share of its full model's quality."""
        share = shares([self.new], self.gate).get(self.new.key)
        return share.verdict if share and not self.new.keeps_all else MISSING


@dataclass(frozen=True)
class Comparison:
    """The points that both new and old records contain, in the order of the new ones, and the
    number of unmatched points.
    """

    pairs: list[Pair]
    only_old: int
    only_new: int
    differs: list[str]  # settings in which the sides share no value
    tolerance: float
    gate: float


def compare(
    new: Sequence[Record], old: Sequence[Record], scorer: Scorer, tolerance: float, gate: float
) -> Comparison:
    """Match the finished points of new and old records, and compare each pair.

    Two points match if they agree in every setting, except settings of which the two sides share no
    value (for example two seeds).
    """
    sides = [done(new), done(old)]
    table = settings_table([*sides[0], *sides[1]]).drop(columns=["folder"])
    tables = [table.iloc[: len(sides[0])], table.iloc[len(sides[0]) :]]
    known = {key: [{*side[key]} - {UNKNOWN} for side in tables] for key in table}
    differs = [
        key for key, (mine, theirs) in known.items() if mine and theirs and not mine & theirs
    ]
    lines = [list(map(tuple, side.drop(columns=differs).to_numpy())) for side in tables]
    now, before = (
        dict(zip(keys, side, strict=True)) for keys, side in zip(lines, sides, strict=True)
    )
    pairs: list[Pair] = []
    for key in filter(before.__contains__, now):
        mine, theirs = now[key], before[key]
        metric, quality = primary([mine, theirs]) or "", None
        if mine.value(metric) is not None and theirs.value(metric) is not None:
            judge = scorer.difference if len(pairs) < MAX_BOOTSTRAPS else from_records
            quality = judge(mine, theirs, metric)
        ratio = speed_ratio(mine, theirs)
        pairs.append(Pair(theirs, mine, metric, quality, ratio, tolerance, gate))
    unmatched = len(before) - len(pairs), len(now) - len(pairs)
    return Comparison(pairs, *unmatched, differs, tolerance, gate)


def comparison_section(title: str, comparison: Comparison) -> Section:
    """Make the table of a comparison, one line per point."""
    names = {TITLES[pair.metric] for pair in comparison.pairs if pair.metric}
    name = names.pop() if len(names) == 1 else "quality"

    def sides(head: str, leaves: Sequence[int], key: str, form: str) -> list[Shown]:
        """Make the columns of a value for both sides; without a key, they show the metric."""
        return [
            (
                Head(f"{head}\nold", leaves[0]),
                lambda pair: _cell(pair.old, key or pair.metric, form),
            ),
            (
                Head(f"{head}\nnew", leaves[1]),
                lambda pair: _cell(pair.new, key or pair.metric, form),
            ),
        ]

    shown: list[Shown] = [
        (Head("approach"), lambda pair: pair.new.label),
        (Head("target"), lambda pair: _cell(pair.new, "target_speedup", ".4g")),
        (Head("batch"), lambda pair: str(pair.new.batch_size)),
        *sides(name, (7, 0), "", ".2f"),
        (Head("minus\nold"), lambda pair: _figure(pair.quality, "+.2f", 0.0)),
        (Head("minus old,\n95%", 3), lambda pair: _ends(pair.quality, "+.2f")),
        *sides("speedup", (6, 0), "measured_speedup", ".2f"),
        (Head("over\nold"), lambda pair: _figure(pair.speedup, ".2f", 1.0)),
        (Head("over old,\n95%", 4), lambda pair: _ends(pair.speedup, ".2f")),
        *sides("tok/s", (2, 1), "total_tokens_per_second", ".0f"),
        (Head("tok/s\nover old", 5), _rate),
        (Head(f"keeps\n{comparison.gate:.0%}"), lambda pair: pair.keeps),
        (Head("faster\nthan full"), lambda pair: pair.is_faster),
        (Head("as\nbefore"), lambda pair: pair.verdict),
    ]
    allowed = f"{comparison.tolerance:.0%}"
    notes = [NOTE, f"As before: the same answers, and a speedup within {allowed}"]
    if comparison.differs:
        titles = dict.fromkeys(map(setting_title, comparison.differs))
        notes.append(f"The sides differ in {', '.join(titles)}")
    counts = {"old": comparison.only_old, "new": comparison.only_new}
    notes += [f"Points only on the {side} side: {count}" for side, count in counts.items() if count]
    return Section.of(title, comparison.pairs, shown, sentences(notes), words=1)


Shown = tuple[Head, Callable[[Pair], str]]


def _cell(record: Record, key: str, form: str) -> str:
    value = record.value(key)
    return MISSING if value is None else format(value, form)


def _rate(pair: Pair) -> str:
    before, now = pair.old.total_tokens_per_second, pair.new.total_tokens_per_second
    return f"{now / before:.2f}" if before and now else MISSING


def _figure(difference: Difference | None, form: str, bound: float) -> str:
    if difference is None:
        return MISSING
    return f"{difference.value:{form}}{'*' * (difference.verdict(bound) != TIE)}"


def _ends(difference: Difference | None, form: str) -> str:
    if difference is None or difference.low is None:
        return MISSING
    return f"{difference.low:{form}} to {difference.high:{form}}"
