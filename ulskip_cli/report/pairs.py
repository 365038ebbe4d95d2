"""Pairs of rows that are compared: the points of two results folders. Winners and the comparison
with the paper use the same pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from ulskip_cli.experiments.intervals import CONFIDENCE, Interval, normal
from ulskip_cli.experiments.record import Record
from ulskip_cli.experiments.settings import all_settings, key_title, section_of
from ulskip_cli.experiments.statistics import (
    FAILS,
    TIE,
    TITLES,
    difference,
    primary,
    reaches,
    speed_ratio,
    verdict,
)
from ulskip_cli.report.columns import Column, speedup
from ulskip_cli.report.rows import done
from ulskip_cli.report.tables import TableSection, sentences

NOTE = (
    "Quality: new minus old (of the decode loss, old minus new); speedup: new divided by old. A"
    " star (*) marks a 95% interval that excludes no difference, for each comparison and not"
    " corrected for their number. Intervals of quality come from a paired bootstrap if both sides'"
    " answers are stored, else from the rows"
)


@dataclass(frozen=True)
class ComparedPair:
    """A row, and an older one that it is compared with."""

    new: Record
    old: Record

    @property
    def metric(self) -> str:
        """The key of the metric in which both are compared."""
        return primary([self.new, self.old]) or ""

    @cached_property
    def quality(self) -> Interval | None:
        """The score of the new row minus that of the old one; positive is better."""
        if any(record.value(self.metric) is None for record in (self.new, self.old)):
            return None
        return difference(self.new, self.old, self.metric)

    @cached_property
    def speedup(self) -> Interval | None:
        """The speedup of the new row divided by the old one's; None for a full model that was
        timed against itself.
        """
        return self.speedup_within(CONFIDENCE)

    def speedup_within(self, confidence: float) -> Interval | None:
        """Return `speedup` with the interval of another confidence."""
        return None if self.new.is_own_baseline else speed_ratio(self.new, self.old, confidence)

    def quality_within(self, confidence: float) -> Interval | None:
        """Return `quality` with the interval of another confidence, as of a normal distribution."""
        if self.quality is None:
            return None
        value, low, high = self.quality
        if low is None or high is None:
            return self.quality
        wider = normal(confidence) / normal(CONFIDENCE)
        return Interval(value, value - wider * (value - low), value + wider * (high - value))

    def verdicts(self, confidence: float) -> dict[str, str]:
        """Return the verdicts, by intervals of a confidence, on the claims that the row is faster
        and that it has the better score; without an interval there is no claim.
        """
        title = TITLES.get(self.metric, self.metric)
        claims = {
            "speed": (self.speedup_within(confidence), 1.0),
            title: (self.quality_within(confidence), 0.0),
        }
        return {
            what: verdict(interval, bound)
            for what, (interval, bound) in claims.items()
            if interval and interval.high is not None
        }

    @property
    def status(self) -> str:
        """The status of the new row, which explains cells without a value."""
        return self.new.status


def beside(column: Column, old: str = "old", new: str = "new") -> list[Column]:
    """Return the columns of a value of the old row, which may be optional, and of the new one."""
    head, value_of = column.title, column.value
    return [
        column._replace(title=f"{old}\n{head}", show=lambda pair: value_of(pair.old)),
        Column(f"{new}\n{head}", lambda pair: value_of(pair.new), column.form),
    ]


POINT = [
    Column("approach", "new.label"),
    Column("target", "new.target_speedup", ".4g"),
    Column("batch", "new.batch_size"),
]


@dataclass(frozen=True)
class FolderComparison:
    """The points that two results folders both contain, in the order of the new one, and the
    numbers of the other points.
    """

    pairs: list[ComparedPair]
    only_old: int
    only_new: int
    differs: list[str]  # settings in which the sides share no value
    gate: float

    def losses(self) -> list[str]:
        """Name the points that got worse, and in what (speed or score), beyond the noise of all
        comparisons together (Bonferroni).
        """
        num_claims = sum(len(pair.verdicts(CONFIDENCE)) for pair in self.pairs)
        confidence = 1 - (1 - CONFIDENCE) / max(1, num_claims)
        worse = []
        for pair in self.pairs:
            row = pair.new
            target = f" {row.target_speedup:g}x" if row.target_speedup else ""
            for what, word in pair.verdicts(confidence).items():
                if word == FAILS:
                    worse.append(f"{row.label}{target}, batch {row.batch_size}: {what}")
        return worse

    def section(self, title: str) -> TableSection:
        """Make the table, one line per pair."""
        metrics = list(dict.fromkeys(pair.metric for pair in self.pairs if pair.metric))
        name = TITLES[metrics[0]] if len(metrics) == 1 else "quality"

        def score(record: Record) -> float | None:
            return next(
                (value for key in metrics if (value := record.value(key)) is not None), None
            )

        columns = [
            *POINT,
            *beside(Column(name, score, ".2f", optional=True)),
            Column("minus\nold", lambda pair: _starred(pair.quality, 0.0, "+.2f")),
            Column(
                "minus old,\n95%", lambda pair: pair.quality and pair.quality.ends("+.2f"), "", True
            ),
            *beside(Column("speedup", speedup, ".2f", optional=True)),
            Column("over\nold", lambda pair: _starred(pair.speedup, 1.0, ".2f")),
            Column(
                "over old,\n95%", lambda pair: pair.speedup and pair.speedup.ends(), optional=True
            ),
            Column(f"keeps\n{self.gate:.0%}", self._keeps),
            Column(
                "faster\nthan full",
                lambda pair: pair.speedup and verdict(pair.new.speedup, 1.0),
            ),
        ]
        notes = [NOTE]
        if self.differs:
            titles = dict.fromkeys(map(key_title, self.differs))
            notes.append(f"The sides differ in {', '.join(titles)}")
        counts = {"old": self.only_old, "new": self.only_new}
        notes += [f"Points only on the {side} side: {n}" for side, n in counts.items() if n]
        return TableSection.of(title, self.pairs, columns, sentences(notes))

    def _keeps(self, pair: ComparedPair) -> str | None:
        """Return the verdict on the claim that the row reaches the quality gate."""
        kept = None if pair.new.is_own_baseline else pair.new.quality_share
        return kept and reaches(kept, self.gate)


def _starred(interval: Interval | None, same: float, form: str) -> str | None:
    """Format a value, with a star if its interval excludes that of no difference, `same`."""
    return f"{interval.value:{form}}{'*' * (verdict(interval, same) != TIE)}" if interval else None


def compare(new: Sequence[Record], old: Sequence[Record], gate: float) -> FolderComparison:
    """Match the finished points of new and old records.

    Two points match if they agree in every setting, except settings of which the two sides share no
    value (for example two seeds), and those of timing that one side lacks, because it timed
    nothing. Task, target and batch size always agree.
    """
    new, old = done(new), done(old)
    rows = all_settings([*new, *old])
    sides = rows[: len(new)], rows[len(new) :]
    differs = []
    for key in sorted({key for row in rows for key in row if key != "folder"}):
        mine, theirs = ({repr(row[key]) for row in side if key in row} for side in sides)
        if mine.isdisjoint(theirs) and ((mine and theirs) or section_of(key) == "speed"):
            differs.append(key)
    ignored = {"folder", *differs} - {"task", "ratio", "batch_size"}
    points = [frozenset((key, repr(row[key])) for key in row.keys() - ignored) for row in rows]
    now = dict(zip(points[: len(new)], new, strict=True))
    before = dict(zip(points[len(new) :], old, strict=True))
    pairs = [ComparedPair(now[point], before[point]) for point in now if point in before]
    unmatched = len(before) - len(pairs), len(now) - len(pairs)
    return FolderComparison(pairs, *unmatched, differs, gate)
