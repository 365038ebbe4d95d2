"""Comparison of two results folders, point by point, with the significance of the differences."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from ulskip_cli.experiments.record import Row
from ulskip_cli.report.columns import Cell, Column, Section, needed, number, text
from ulskip_cli.report.corrections import adapter_names, series_name
from ulskip_cli.report.difference import TIE, Difference, Scorer, from_rows, shared_metric, speed_ratio
from ulskip_cli.report.quality import METRICS, primary
from ulskip_cli.report.rows import MISSING, done, setting_keys, setting_title
from ulskip_cli.report.tables import sentences

# Two points match if they agree in these keys, except keys in which the two sides share no value.
POINT_KEYS = (
    *("model", "task", "dataset", "pair", "strategy", "strategy_options", "target_speedup", "batch_size", "decoding"),
    *("draft_tokens", "num_examples", "prompt_layers", "ratio_basis", "engine", "engine_weights", "baseline_engine", "offset"),
    *("quantization", "dtype", "device", "seed", "adapter"),
)
MAX_BOOTSTRAPS = 200
NOTE = (
    "Quality: new minus old; speedup and tok/s: new divided by old. A star (*) marks a 95% interval that excludes no "
    "difference, for each comparison and not corrected for their number. Intervals of quality come from a paired bootstrap if "
    "both sides' answers are stored, else from the rows. "
    "Tokens/s are single measurements without an interval."
)


@dataclass(frozen=True)
class Comparison:
    """The points that both new and old rows contain, in the order of the new rows, and the number of unmatched points."""

    pairs: list[Row]  # see `_pair`; `quality` and `speedup_ratio` are Differences or None
    only_old: int
    only_new: int
    differs: list[str]  # settings in which the sides share no value

    def as_dicts(self) -> list[dict[str, Any]]:
        """The pairs as plain values."""
        return [{k: asdict(v) if isinstance(v, Difference) else v for k, v in pair.items()} for pair in self.pairs]


def compare(new: Sequence[Row], old: Sequence[Row], scorer: Scorer) -> Comparison:
    """Match the finished points of new and old rows, and compare each pair."""
    new, old = ([{**row, "adapter": adapter_names(row)} for row in done(side)] for side in (new, old))
    keys, differs = shared_keys(new, old, (*POINT_KEYS, *setting_keys([*new, *old])))
    sides = [pd.DataFrame([[str(row.get(key)) for key in keys] for row in side], columns=keys) for side in (new, old)]
    now, before = (side.assign(at=side.index).drop_duplicates(keys, keep="last") for side in sides)
    both = now.merge(before, on=keys) if keys else now.merge(before, how="cross")
    pairs = [
        _pair(old[j], new[i], scorer if k < MAX_BOOTSTRAPS else None)
        for k, (i, j) in enumerate(zip(both["at_x"], both["at_y"], strict=True))
    ]
    return Comparison(pairs, len(before) - len(both), len(now) - len(both), differs)


def shared_keys(new: Sequence[Row], old: Sequence[Row], keys: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split the keys that both lists of rows contain into keys with a common value and keys without a common value."""
    mine, theirs = ({key: {str(row[key]) for row in side if key in row} for key in keys} for side in (new, old))
    known = [key for key in keys if mine[key] and theirs[key]]
    return [key for key in known if mine[key] & theirs[key]], [key for key in known if not mine[key] & theirs[key]]


def _pair(old: Row, new: Row, scorer: Scorer | None) -> Row:
    """Compare the new and the old row of a point: new minus old, where positive is better."""
    metric = primary([new, old])
    keys = [*([metric] if metric else []), "measured_speedup", "total_tokens_per_second"]
    apart = None
    if metric is not None and shared_metric([new, old], metric):
        apart = scorer.difference(new, old, metric) if scorer else from_rows(new, old, metric)
    return {
        "approach": " ".join(filter(None, [series_name(new), new["adapter"]])),
        **{key: new.get(key) for key in ("strategy", "strategy_options", "target_speedup", "batch_size")},
        "old_id": old["id"],
        "new_id": new["id"],
        **{f"{side}_{key}": row.get(key) for key in keys for side, row in (("old", old), ("new", new))},
        "metric": metric,
        "quality": apart,
        "speedup_ratio": speed_ratio(new, old),
    }


def comparison_section(title: str, comparison: Comparison) -> Section:
    """Make the table of a comparison, one line per point."""
    lines = [_line(pair) for pair in comparison.pairs]
    names = {METRICS[pair["metric"]] for pair in comparison.pairs if pair["metric"]}
    name = names.pop() if len(names) == 1 else "quality"
    columns = [
        Column("approach", text("approach"), "approach"),
        Column("target", number("target_speedup", ".4g"), "target_speedup"),
        Column("batch", text("batch_size"), "batch_size"),
        Column(f"{name}\nold", number("old_quality"), "old_quality"),
        Column("\nnew", number("new_quality"), "new_quality"),
        Column("minus\nold", _figure("quality", "+.2f", 0.0), "quality"),
        Column("95%", _interval("quality", "+.2f"), "quality", leaves=3),
        Column("speedup\nold", number("old_measured_speedup"), "old_measured_speedup"),
        Column("\nnew", number("new_measured_speedup"), "new_measured_speedup"),
        Column("over\nold", _figure("speedup_ratio", ".2f", 1.0), "speedup_ratio"),
        Column("95%", _interval("speedup_ratio", ".2f"), "speedup_ratio", leaves=4),
        Column("tok/s\nold", number("old_total_tokens_per_second", ".0f"), "old_total_tokens_per_second", leaves=2),
        Column("\nnew", number("new_total_tokens_per_second", ".0f"), "new_total_tokens_per_second", leaves=1),
        Column("tok/s\nover old", number("rate"), "rate"),
    ]
    notes = [NOTE]
    if comparison.differs:
        notes.append(f"The sides differ in {', '.join(map(setting_title, comparison.differs))}")
    sides = ((comparison.only_old, "old"), (comparison.only_new, "new"))
    notes += [f"Points only on the {side} side: {count}" for count, side in sides if count]
    return Section(title, lines, needed(columns, lines), sentences(notes), words=1)


def _line(pair: Row) -> Row:
    scores = {f"{side}_quality": pair.get(f"{side}_{pair['metric']}") for side in ("old", "new")}
    before, now = (pair[f"{side}_total_tokens_per_second"] for side in ("old", "new"))
    return {**pair, **scores, "rate": now / before if before and now else None}


def _figure(key: str, form: str, null: float) -> Cell:
    def show(one: Difference | None) -> str:
        return MISSING if one is None else f"{one.value:{form}}{'*' * (one.verdict(null) != TIE)}"

    return lambda line: show(line.get(key))


def _interval(key: str, form: str) -> Cell:
    def show(one: Difference | None) -> str:
        return MISSING if one is None or one.low is None else f"{one.low:{form}} to {one.high:{form}}"

    return lambda line: show(line.get(key))
