"""Comparison of two results folders, point by point, with a verdict for every difference."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ulskip_cli.experiments.record import MISSING, Record
from ulskip_cli.experiments.statistics import (
    FAILS,
    GATE,
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
    name: str
    metric: str | None
    quality: Difference | None  # new minus old; positive is better
    speedup: Difference | None  # new divided by old
    tolerance: float
    gate: float

    @property
    def verdict(self) -> str:
        """The claim that the new side repeats the old one: its score, and its speedup within the
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
        return (
            verdict(self.new.speedup, 1.0)
            if self.new.speedup and not self.new.keeps_all
            else MISSING
        )

    @property
    def keeps(self) -> str:
        """The claim that the new side keeps the gate's share of its full model's quality."""
        share = next(iter(shares([self.new], self.gate).values()), None)
        return share.verdict if share and not self.new.keeps_all else MISSING

    def as_dict(self) -> dict[str, Any]:
        """Return the pair as plain values."""
        keys = [
            *([self.metric] if self.metric else []),
            "measured_speedup",
            "total_tokens_per_second",
        ]
        return {
            "approach": self.name,
            **{
                key: self.new.value(key)
                for key in ("strategy", "strategy_options", "target_speedup", "batch_size")
            },
            "old_id": self.old.id,
            "new_id": self.new.id,
            **{
                f"{side}_{key}": row.value(key)
                for key in keys
                for side, row in (("old", self.old), ("new", self.new))
            },
            "metric": self.metric,
            "quality": self.quality and asdict(self.quality),
            "speedup_ratio": self.speedup and asdict(self.speedup),
            "keeps_quality": self.keeps,
            "is_faster": self.is_faster,
            "as_before": self.verdict,
        }


@dataclass(frozen=True)
class Comparison:
    """The points that both new and old records contain, in the order of the new ones, and the
    number of unmatched points.
    """

    pairs: list[Pair]
    only_old: int
    only_new: int
    differs: list[str]  # settings in which the sides share no value


def compare(
    new: Sequence[Record], old: Sequence[Record], scorer: Scorer, tolerance: float, gate: float
) -> Comparison:
    """Match the finished points of new and old records, and compare each pair.

    Two points match if they agree in every setting, except settings in which the two sides share no
    value, as two seeds.
    """
    new, old = done(new), done(old)
    table = settings_table([*new, *old]).drop(columns=["folder"])
    now, before = table.iloc[: len(new)], table.iloc[len(new) :].reset_index(drop=True)
    known = [(key, {*now[key]} - {UNKNOWN}, {*before[key]} - {UNKNOWN}) for key in table]
    differs = [key for key, mine, theirs in known if mine and theirs and not mine & theirs]
    keys = [key for key in table if key not in differs]
    matched: dict[tuple[str, ...], list[Record | None]] = {}
    for side, (frame, records) in enumerate(((now, new), (before, old))):
        for line, record in zip(
            frame[keys].itertuples(index=False, name=None), records, strict=True
        ):
            matched.setdefault(line, [None, None])[side] = record
    both = [(later, earlier) for later, earlier in matched.values() if later and earlier]
    judge = (tolerance, gate)
    pairs = [
        _pair(later, earlier, scorer if i < MAX_BOOTSTRAPS else None, judge)
        for i, (later, earlier) in enumerate(both)
    ]
    sides = [
        sum(record is not None for record in (pair[side] for pair in matched.values()))
        for side in (0, 1)
    ]
    return Comparison(pairs, sides[1] - len(both), sides[0] - len(both), differs)


def _pair(new: Record, old: Record, scorer: Scorer | None, judge: tuple[float, float]) -> Pair:
    metric = primary([new, old])
    quality = None
    if metric is not None and new.value(metric) is not None and old.value(metric) is not None:
        quality = scorer.difference(new, old, metric) if scorer else from_records(new, old, metric)
    return Pair(old, new, new.label, metric, quality, speed_ratio(new, old), *judge)


def comparison_section(title: str, comparison: Comparison) -> Section:
    """Make the table of a comparison, one line per point."""
    tolerance, gate = next(
        ((pair.tolerance, pair.gate) for pair in comparison.pairs), (TOLERANCE, GATE)
    )
    names = {TITLES[pair.metric] for pair in comparison.pairs if pair.metric}
    name = names.pop() if len(names) == 1 else "quality"
    shown = [
        (Head("approach"), lambda pair: pair.name),
        (Head("target"), lambda pair: _number(pair.new.target_speedup, ".4g")),
        (Head("batch"), lambda pair: str(pair.new.batch_size)),
        (Head(f"{name}\nold", 7), lambda pair: _number(pair.old.value(pair.metric or ""), ".2f")),
        (Head(f"{name}\nnew"), lambda pair: _number(pair.new.value(pair.metric or ""), ".2f")),
        (Head("minus\nold"), lambda pair: _figure(pair.quality, "+.2f", 0.0)),
        (Head("minus old,\n95%", 3), lambda pair: _ends(pair.quality, "+.2f")),
        (Head("speedup\nold", 6), lambda pair: _number(pair.old.measured_speedup, ".2f")),
        (Head("speedup\nnew"), lambda pair: _number(pair.new.measured_speedup, ".2f")),
        (Head("over\nold"), lambda pair: _figure(pair.speedup, ".2f", 1.0)),
        (Head("over old,\n95%", 4), lambda pair: _ends(pair.speedup, ".2f")),
        (Head("tok/s\nold", 2), lambda pair: _number(pair.old.total_tokens_per_second, ".0f")),
        (Head("tok/s\nnew", 1), lambda pair: _number(pair.new.total_tokens_per_second, ".0f")),
        (Head("tok/s\nover old", 5), _rate),
        (Head(f"keeps\n{gate:.0%}"), lambda pair: pair.keeps),
        (Head("faster\nthan full"), lambda pair: pair.is_faster),
        (Head("as\nbefore"), lambda pair: pair.verdict),
    ]
    notes = [NOTE, f"As before: the same answers, and a speedup within {tolerance:.0%}"]
    if comparison.differs:
        notes.append(
            "The sides differ in"
            f" {', '.join(dict.fromkeys(map(setting_title, comparison.differs)))}"
        )
    sides = ((comparison.only_old, "old"), (comparison.only_new, "new"))
    notes += [f"Points only on the {side} side: {count}" for count, side in sides if count]
    return Section.of(title, comparison.pairs, shown, sentences(notes), words=1)


def _number(value: float | None, form: str) -> str:
    return MISSING if value is None else format(value, form)


def _rate(pair: Pair) -> str:
    before, now = pair.old.total_tokens_per_second, pair.new.total_tokens_per_second
    return _number(now / before if before and now else None, ".2f")


def _figure(difference: Difference | None, form: str, bound: float) -> str:
    return (
        MISSING
        if difference is None
        else f"{difference.value:{form}}{'*' * (difference.verdict(bound) != TIE)}"
    )


def _ends(difference: Difference | None, form: str) -> str:
    return (
        MISSING
        if difference is None or difference.low is None
        else f"{difference.low:{form}} to {difference.high:{form}}"
    )
