"""Two folders of results, point by point, with the significance of what differs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ulskip_cli.experiments.record import Row
from ulskip_cli.report import settings
from ulskip_cli.report.columns import Column, number, text
from ulskip_cli.report.difference import Difference, Scorer, speed_ratio
from ulskip_cli.report.gate import METRICS, primary
from ulskip_cli.report.status import MISSING, done

# What makes two points the same; those in which the two sides have nothing in common are what is compared.
KEYS = (
    *("model", "task", "dataset", "pair", "strategy", "strategy_options", "target_speedup", "batch_size", "decoding"),
    *("draft_tokens", "num_examples", "prompt_layers", "ratio_basis", "quantization", "dtype", "device", "seed"),
)
MOST_BOOTSTRAPS = 200
NOTE = (
    "new less old, and new over old, with 95% intervals; * the interval leaves out no difference. Intervals of quality: paired "
    "bootstrap where both sides' answers are stored, else from the rows. Tokens/s are single measurements, without an interval"
)


@dataclass(frozen=True)
class Pair:
    """One point on both sides.

    Attributes:
        old: the row that is compared with.
        new: the row that is looked at.
        metric: row key of the metric that decides; None without quality.
        quality: new less old, better is positive; None where one has no score.
        speedup: new measured speedup over old; None where one was not measured.
    """

    old: Row
    new: Row
    metric: str | None
    quality: Difference | None
    speedup: Difference | None

    def told(self) -> dict[str, Any]:
        """For machines."""
        sides = {"old": self.old, "new": self.new}
        keys = [*([self.metric] if self.metric else []), "measured_speedup", "total_tokens_per_second"]
        return {
            **{key: self.new.get(key) for key in ("strategy", "strategy_options", "target_speedup", "batch_size")},
            **{f"{side}_id": row["id"] for side, row in sides.items()},
            **{f"{side}_{key}": row.get(key) for key in keys for side, row in sides.items()},
            "metric": self.metric,
            "quality": _ends(self.quality),
            "speedup_ratio": _ends(self.speedup),
        }


@dataclass(frozen=True)
class Comparison:
    """All points that both sides have.

    Attributes:
        pairs: in the order of the new side.
        only_old: points that the new side lacks.
        only_new: points that the old side lacks.
        differs: settings in which the sides have nothing in common.
    """

    pairs: list[Pair]
    only_old: int
    only_new: int
    differs: list[str]


def compare(new: Sequence[Row], old: Sequence[Row], scorer: Scorer) -> Comparison:
    """Match the finished points of two sides and measure how far apart they are."""
    fresh, former = done(new), done(old)
    keys, differs = shared(fresh, former, (*KEYS, *settings.keys([*fresh, *former])))
    before = {_key(row, keys): row for row in former}
    now = {_key(row, keys): row for row in fresh}
    both = [(before[key], row) for key, row in now.items() if key in before]
    pairs = [_pair(mine, own, scorer if i < MOST_BOOTSTRAPS else None) for i, (mine, own) in enumerate(both)]
    return Comparison(pairs, len(before) - len(both), len(now) - len(both), differs)


def shared(new: Sequence[Row], old: Sequence[Row], keys: Sequence[str]) -> tuple[list[str], list[str]]:
    """The keys by which rows of two sides can be matched, and those in which the sides have nothing in common.

    Those that one side does not have at all are neither.
    """
    mine, theirs = ({key: {str(row[key]) for row in side if key in row} for key in keys} for side in (new, old))
    known = [key for key in keys if mine[key] and theirs[key]]
    return [key for key in known if mine[key] & theirs[key]], [key for key in known if not mine[key] & theirs[key]]


def _key(row: Row, keys: Sequence[str]) -> tuple[str, ...]:
    return tuple(str(row.get(key)) for key in keys)


def _pair(old: Row, new: Row, scorer: Scorer | None) -> Pair:
    metric = primary([new, old])
    if metric is None or new.get(metric) is None or old.get(metric) is None:
        return Pair(old, new, metric, None, speed_ratio(new, old))
    from ulskip_cli.report.difference import from_rows

    quality = scorer.difference(new, old, metric) if scorer else from_rows(new, old, metric)
    return Pair(old, new, metric, quality, speed_ratio(new, old))


def lines(comparison: Comparison) -> tuple[list[Row], list[Column]]:
    """A line a point, and the columns of a table of them."""
    found = []
    for pair in comparison.pairs:
        line = {"approach": pair.new["strategy"], "target": pair.new.get("target_speedup"), "batch": pair.new["batch_size"]}
        for side, row in (("old", pair.old), ("new", pair.new)):
            line |= {
                f"{side}_quality": row.get(pair.metric) if pair.metric else None,
                f"{side}_speedup": row.get("measured_speedup"),
                f"{side}_tokens": row.get("total_tokens_per_second"),
            }
        before, now = line["old_tokens"], line["new_tokens"]
        rate = now / before if before and now else None
        found.append({**line, "quality": pair.quality, "speedup": pair.speedup, "rate": rate})
    names = {METRICS[pair.metric] for pair in comparison.pairs if pair.metric}
    name = names.pop() if len(names) == 1 else "quality"
    columns = [
        Column("approach", text("approach"), "approach"),
        Column("target", number("target", ".4g"), "target"),
        Column("batch", text("batch"), "batch"),
        Column(f"{name}\nold", number("old_quality"), "old_quality"),
        Column("\nnew", number("new_quality"), "new_quality"),
        Column("less\nold", _figure("quality", "+.2f", 0.0), "quality"),
        Column("95%", _interval("quality", "+.2f"), "quality", leaves=3),
        Column("speedup\nold", number("old_speedup"), "old_speedup"),
        Column("\nnew", number("new_speedup"), "new_speedup"),
        Column("over\nold", _figure("speedup", ".2f", 1.0), "speedup"),
        Column("95%", _interval("speedup", ".2f"), "speedup", leaves=4),
        Column("tok/s\nold", number("old_tokens", ".0f"), "old_tokens", leaves=2),
        Column("\nnew", number("new_tokens", ".0f"), "new_tokens", leaves=1),
        Column("tok/s\nover old", number("rate"), "rate"),
    ]
    return found, [column for column in columns if any(line.get(column.needs) is not None for line in found)]


def note(comparison: Comparison) -> str:
    """What a reader of the table has to know."""
    parts = [NOTE]
    if comparison.differs:
        parts.append(f"the sides differ in {', '.join(map(settings.title, comparison.differs))}")
    for count, side in ((comparison.only_old, "old"), (comparison.only_new, "new")):
        if count:
            parts.append(f"{count} points are in the {side} side alone")
    return "; ".join(parts)


def _figure(key: str, form: str, null: float) -> Callable[[Row], str]:
    def show(line: Row) -> str:
        one: Difference | None = line.get(key)
        if one is None:
            return MISSING
        known = one.low is not None and one.high is not None
        mark = "*" if known and not one.low <= null <= one.high else ""  # type: ignore[operator]
        return f"{one.value:{form}}{mark}"

    return show


def _interval(key: str, form: str) -> Callable[[Row], str]:
    def show(line: Row) -> str:
        one: Difference | None = line.get(key)
        return MISSING if one is None or one.low is None else f"{one.low:{form}} to {one.high:{form}}"

    return show


def _ends(one: Difference | None) -> dict[str, Any] | None:
    return None if one is None else {"value": one.value, "low": one.low, "high": one.high, "how": one.how}
