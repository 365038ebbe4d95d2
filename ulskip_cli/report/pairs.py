"""Pairs of rows that are compared: of two results folders, of winners, and of the paper."""

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

Values = dict[str, object]  # of the settings of one record, by key

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
        """The key of the metric in which both are compared; empty without a score."""
        return primary([self.new, self.old]) or ""

    @cached_property
    def quality(self) -> Interval | None:
        """The new score minus the old one; positive is better."""
        if any(record.value(self.metric) is None for record in (self.new, self.old)):
            return None
        return difference(self.new, self.old, self.metric)

    @cached_property
    def speedup(self) -> Interval | None:
        """The new speedup divided by the old one; None for a full model timed against itself."""
        return self.speedup_within(CONFIDENCE)

    def speedup_within(self, confidence: float) -> Interval | None:
        """Return `speedup` with the interval of another confidence."""
        return None if self.new.is_own_baseline else speed_ratio(self.new, self.old, confidence)

    def quality_within(self, confidence: float) -> Interval | None:
        """Return `quality` with a normal interval of another confidence."""
        if self.quality is None:
            return None
        value, low, high = self.quality
        if low is None or high is None:
            return self.quality
        widening = normal(confidence) / normal(CONFIDENCE)
        return Interval(value, value - widening * (value - low), value + widening * (high - value))

    def verdicts(self, confidence: float) -> dict[str, str]:
        """Return the verdicts on the claims of more `speed`, and of a better score, under the
        metric's title; without an interval there is none.
        """
        found = {}
        speedup = self.speedup_within(confidence)
        if speedup and speedup.high is not None:
            found["speed"] = verdict(speedup, 1.0)
        quality = self.quality_within(confidence)
        if quality and quality.high is not None:
            found[TITLES.get(self.metric, self.metric)] = verdict(quality)
        return found

    @property
    def status(self) -> str:
        """The status of the new row, which explains empty cells."""
        return self.new.status


def beside(column: Column, old: str = "old", new: str = "new") -> list[Column]:
    """Return two columns of pairs for a column of rows: of the `old` side, optional if `column` is,
    and of the `new` one.
    """

    def of_old(pair: ComparedPair) -> object:
        return column.value(pair.old)

    def of_new(pair: ComparedPair) -> object:
        return column.value(pair.new)

    return [
        column._replace(title=f"{old}\n{column.title}", show=of_old),
        Column(f"{new}\n{column.title}", of_new, column.form),
    ]


POINT = [
    Column("approach", "new.label"),
    Column("target", "new.target_speedup", ".4g"),
    Column("batch", "new.batch_size"),
]


@dataclass(frozen=True)
class FolderComparison:
    """The points that two results folders share, in the order of the new one."""

    pairs: list[ComparedPair]
    only_old: int  # number of points that only the old folder has
    only_new: int
    differs: list[str]  # settings of which the sides share no value
    gate: float

    def losses(self) -> list[str]:
        """Name the points that got worse, and in speed or score. With the Bonferroni correction,
        noise makes any of all claims fail in only 5% of comparisons.
        """
        num_claims = sum(len(pair.verdicts(CONFIDENCE)) for pair in self.pairs)
        confidence = 1 - (1 - CONFIDENCE) / max(1, num_claims)
        worse = []
        for pair in self.pairs:
            row = pair.new
            target = f" {row.target_speedup:g}x" if row.target_speedup else ""
            for claim, judgement in pair.verdicts(confidence).items():
                if judgement == FAILS:
                    worse.append(f"{row.label}{target}, batch {row.batch_size}: {claim}")
        return worse

    def section(self, title: str) -> TableSection:
        """Make the table, one line per pair."""
        metrics = list(dict.fromkeys(pair.metric for pair in self.pairs if pair.metric))
        name = TITLES[metrics[0]] if len(metrics) == 1 else "quality"

        def score(record: Record) -> float | None:
            scores = (record.value(metric) for metric in metrics)
            return next((score for score in scores if score is not None), None)

        columns = [
            *POINT,
            *beside(Column(name, score, ".2f", optional=True)),
            Column("minus\nold", lambda pair: _starred(pair.quality, 0.0, "+.2f")),
            Column("minus old,\n95%", lambda pair: _ends(pair.quality, "+.2f"), optional=True),
            *beside(Column("speedup", speedup, ".2f", optional=True)),
            Column("over\nold", lambda pair: _starred(pair.speedup, 1.0, ".2f")),
            Column("over old,\n95%", lambda pair: _ends(pair.speedup, ".2f"), optional=True),
            Column(f"keeps\n{self.gate:.0%}", self._keeps_gate),
            Column("faster\nthan full", _is_faster),
        ]
        notes = [NOTE]
        if self.differs:
            titles = dict.fromkeys(map(key_title, self.differs))
            notes.append(f"The sides differ in {', '.join(titles)}")
        counts = {"old": self.only_old, "new": self.only_new}
        notes += [f"Points only on the {side} side: {n}" for side, n in counts.items() if n]
        return TableSection.of(title, self.pairs, columns, sentences(notes))

    def _keeps_gate(self, pair: ComparedPair) -> str | None:
        share = pair.new.quality_share
        if share is None or pair.new.is_own_baseline:
            return None
        return reaches(share, self.gate)


def _is_faster(pair: ComparedPair) -> str | None:
    """Judge the claim that the new row is faster than its full model."""
    return verdict(pair.new.speedup, 1.0) if pair.speedup else None


def _starred(interval: Interval | None, same: float, form: str) -> str | None:
    """Format a value, with a star if its interval excludes `same`, no difference."""
    if interval is None:
        return None
    star = "" if verdict(interval, same) == TIE else "*"
    return f"{interval.value:{form}}{star}"


def _ends(interval: Interval | None, form: str) -> str | None:
    return interval.ends(form) if interval else None


def compare(new: Sequence[Record], old: Sequence[Record], gate: float) -> FolderComparison:
    """Match the finished points of new and old records. They agree in every setting, except those
    of which the sides share no value (for example seeds), and those of timing that one side lacks.
    Task, target and batch size always agree.
    """
    new, old = done(new), done(old)
    settings = all_settings([*new, *old])
    new_settings, old_settings = settings[: len(new)], settings[len(new) :]
    differs = _without_shared_value(new_settings, old_settings)
    ignored = {"folder", *differs} - {"task", "ratio", "batch_size"}
    new_rows = dict(zip(_points(new_settings, ignored), new, strict=True))
    old_rows = dict(zip(_points(old_settings, ignored), old, strict=True))
    pairs = [
        ComparedPair(row, old_rows[point]) for point, row in new_rows.items() if point in old_rows
    ]
    only_old, only_new = len(old_rows) - len(pairs), len(new_rows) - len(pairs)
    return FolderComparison(pairs, only_old, only_new, differs, gate)


def _without_shared_value(new: Sequence[Values], old: Sequence[Values]) -> list[str]:
    """Return the settings of which both sides have values and share none. Of the section `speed`,
    which changes measured times, also those that only one side has.
    """
    unshared = []
    for key in sorted({key for row in (*new, *old) for key in row} - {"folder"}):
        new_values = {repr(row[key]) for row in new if key in row}
        old_values = {repr(row[key]) for row in old if key in row}
        both_have = new_values and old_values
        if new_values.isdisjoint(old_values) and (both_have or section_of(key) == "speed"):
            unshared.append(key)
    return unshared


def _points(rows: Sequence[Values], ignored: set[str]) -> list[frozenset[tuple[str, str]]]:
    """Return the settings of each row as a hashable value."""
    return [frozenset((key, repr(row[key])) for key in row.keys() - ignored) for row in rows]
