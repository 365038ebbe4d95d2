"""Pictures of a sweep: quality against speed, speed against what was asked, tokens/s, exit depths, kept layers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from ulskip_cli.experiments.record import Row
from ulskip_cli.report import drawing
from ulskip_cli.report.drawing import FAINT, INK, MARKERS, Interval, colour
from ulskip_cli.report.gate import LOWER_IS_BETTER, METRICS, called, primary
from ulskip_cli.report.groups import Group
from ulskip_cli.report.status import done

MOST_PANELS = 4
MOST_POINTS = 120  # in one panel; more are a cloud that says nothing, and seconds of drawing
MOST_LABELS = 30
MOST_STRIPS = 24
LONGEST_TITLE = 58


@dataclass(frozen=True)
class Picture:
    """A figure with its name and what it shows."""

    name: str
    caption: str
    figure: Any

    def save(self, folder: Path) -> list[Path]:
        """Write NAME.png and NAME.svg."""
        return drawing.saved(self.figure, folder / self.name)

    def svg(self) -> str:
        """As an element of a page."""
        return drawing.inline_svg(self.figure, self.name)


def draw(groups: Sequence[Group], gate: float) -> list[Picture]:
    """All pictures for which there are rows.

    Args:
        groups: rows by setting; those with the most points are drawn, a panel each.
        gate: share of full's quality, drawn as a line.
    """
    with drawing.style():
        made = [quality(groups, gate), targets(groups), throughput(groups), exits(groups), strips(groups)]
    return [one for one in made if one is not None]


def quality(groups: Sequence[Group], gate: float) -> Picture | None:
    """Quality against measured speedup at the smallest batch size, with both intervals and the Pareto front."""
    shown = _most([(group, _scored(group)) for group in groups])
    if not shown:
        return None
    figure, axes = drawing.panels(len(shown), 6.6 if len(shown) == 1 else 4.8, 4.2)
    handles: dict[str, Any] = {}
    for its, (group, rows) in zip(axes, shown, strict=True):
        metric = str(primary(group.rows))
        _full(its, group, metric, gate)
        points = [(row["measured_speedup"], row[metric]) for row in rows]
        fulls = [(1.0, row[metric]) for row in done(group.rows) if row["strategy"] == "full" and row.get(metric) is not None]
        front = pareto([*points, *fulls[:1]], metric)
        if len(front) > 1:
            (line,) = its.plot(*zip(*front, strict=True), color=FAINT, linewidth=6, alpha=0.3, zorder=1)
            line.set_solid_capstyle("round")
            handles.setdefault("Pareto front", line)
        for strategy in dict.fromkeys(row["strategy"] for row in rows):
            own = sorted((row for row in rows if row["strategy"] == strategy), key=lambda row: row["measured_speedup"])
            handles.setdefault(strategy, _series(its, own, metric, strategy))
        if len(rows) <= MOST_LABELS:
            _label(its, rows, metric)
        its.set_xlabel(f"measured decode speedup, batch {rows[0]['batch_size']}")
        its.set_ylabel(METRICS[metric])
        its.set_ylim(bottom=max(its.get_ylim()[0], -0.02 * its.get_ylim()[1]))
        its.set_title(_short(group.label))
    drawing.legend_below(figure, list(handles.values()), list(handles))
    return Picture("quality", "Quality against measured speedup; bars are 95% intervals, the band is the Pareto front.", figure)


def pareto(points: Sequence[tuple[float, float]], metric: str = "bleu") -> list[tuple[float, float]]:
    """The points that no other beats in both speed and quality, the slowest first.

    >>> pareto([(1.0, 30.0), (2.0, 29.0), (1.5, 20.0), (3.0, 10.0)])
    [(1.0, 30.0), (2.0, 29.0), (3.0, 10.0)]
    """
    sign = -1 if metric in LOWER_IS_BETTER else 1
    best, front = -math.inf, []
    for speed, value in sorted(points, key=lambda point: (-point[0], -sign * point[1])):
        if sign * value > best:
            best = sign * value
            front.append((speed, value))
    return front[::-1]


def _scored(group: Group) -> list[Row]:
    """The rows of the smallest batch size that have quality and a measured speedup."""
    metric = primary(group.rows)
    rows = [row for row in done(group.rows) if row["strategy"] != "full" and row.get("measured_speedup") is not None]
    rows = [row for row in rows if metric and row.get(metric) is not None]
    smallest = min((row["batch_size"] for row in rows), default=None)
    return [row for row in rows if row["batch_size"] == smallest]


def _most(found: Sequence[tuple[Group, list[Row]]]) -> list[tuple[Group, list[Row]]]:
    """The groups with the most rows, in their order; of very many rows evenly chosen ones."""
    ranked = sorted((item for item in found if item[1]), key=lambda item: -len(item[1]))[:MOST_PANELS]
    chosen = [item for item in found if any(item is one for one in ranked)]
    return [(group, rows[:: -(-len(rows) // MOST_POINTS)]) for group, rows in chosen]


def _full(axes: Any, group: Group, metric: str, gate: float) -> None:
    for row in done(group.rows):
        if row["strategy"] == "full" and row.get(metric) is not None:
            axes.axhline(row[metric], color=colour("full"), linestyle="--", linewidth=1)
            axes.plot([1], [row[metric]], marker="D", color=colour("full"), markersize=5)
            axes.annotate("full", (1, row[metric]), xytext=(4, 4), textcoords="offset points", color=INK, fontsize=8)
            if metric not in LOWER_IS_BETTER:
                axes.axhline(gate * row[metric], color=colour("full"), linestyle=":", linewidth=1)
                where = {"xy": (1, gate * row[metric]), "xycoords": axes.get_yaxis_transform()}
                axes.annotate(
                    f"gate: {gate:.0%} of full", **where, xytext=(-2, -3), textcoords="offset points", ha="right", va="top",
                    color=INK, fontsize=8,
                )  # fmt: skip
            return


def _series(axes: Any, rows: Sequence[Row], metric: str, strategy: str) -> Any:
    """One strategy's points with their intervals, joined where they are few."""
    xs, ys = [row["measured_speedup"] for row in rows], [row[metric] for row in rows]
    line = "-" if len(rows) <= MOST_LABELS and len({row.get("target_speedup") for row in rows}) == len(rows) else ""
    (drawn,) = axes.plot(xs, ys, marker="o", markersize=5, linestyle=line, linewidth=1.2, color=colour(strategy), zorder=3)
    wide: list[Interval] = [
        ((row["measured_speedup_low"], row[metric]), (row["measured_speedup_high"], row[metric])) for row in rows
    ]
    drawing.bars(axes, wide, colour(strategy), alpha=0.8)
    compared = [(row["measured_speedup"], row["against_full"][metric]) for row in rows if metric in row.get("against_full", {})]
    tall: list[Interval] = [
        ((x, max(0.0, one["full"] + one["delta_low"])), (x, one["full"] + one["delta_high"])) for x, one in compared
    ]
    if tall:
        drawing.bars(axes, tall, colour(strategy), alpha=0.8)
    return drawn


def _label(axes: Any, rows: Sequence[Row], metric: str) -> None:
    for row in rows:
        label = f"{row['target_speedup']:g}x" if row.get("target_speedup") else f"{len(row['kept_layers'])} layers"
        where = (row["measured_speedup"], row[metric])
        axes.annotate(label, where, xytext=(5, 5), textcoords="offset points", fontsize=7.5, color=INK)


def targets(groups: Sequence[Group]) -> Picture | None:
    """Measured speedup against the target, the prediction as a tick beside it."""
    shown = _most([(group, _timed(group)) for group in groups])
    if not shown:
        return None
    figure, axes = drawing.panels(len(shown), 6.6 if len(shown) == 1 else 4.8, 4.2)
    handles: dict[str, Any] = {}
    for its, (group, rows) in zip(axes, shown, strict=True):
        batches = sorted({row["batch_size"] for row in rows})
        series = sorted({(row["strategy"], row["batch_size"]) for row in rows})
        wanted = [row["target_speedup"] for row in rows]
        step = 0.5 * _gap(wanted) / max(1, len(series))
        for i, (strategy, batch) in enumerate(series):
            own = [row for row in rows if (row["strategy"], row["batch_size"]) == (strategy, batch)]
            xs = [row["target_speedup"] + (i - (len(series) - 1) / 2) * step for row in own]
            mark = MARKERS[batches.index(batch) % len(MARKERS)]
            its.plot(xs, [row["measured_speedup"] for row in own], mark, markersize=4, color=colour(strategy))
            spread: list[Interval] = [
                ((x, row["measured_speedup_low"]), (x, row["measured_speedup_high"])) for x, row in zip(xs, own, strict=True)
            ]
            drawing.bars(its, spread, colour(strategy))
            known = [(x, row["predicted_speedup"]) for x, row in zip(xs, own, strict=True) if row.get("predicted_speedup")]
            if known:
                tick = its.scatter(*zip(*known, strict=True), marker="_", color=INK, s=40, linewidth=1, zorder=4)
                handles.setdefault("predicted", tick)
        ends = [1, max(wanted)]
        handles.setdefault("as asked", its.plot(ends, ends, color=FAINT, linestyle="--", linewidth=1)[0])
        _keys(its, rows, batches, handles)
        its.set_xticks(sorted(set(wanted)), [f"{target:g}x" for target in sorted(set(wanted))])
        its.set_xlabel("target speedup")
        its.set_ylabel("measured decode speedup")
        its.set_title(_short(group.label))
    drawing.legend_below(figure, list(handles.values()), list(handles))
    return Picture("targets", "Measured speedup against the target; bars are 95% intervals.", figure)


def _keys(axes: Any, rows: Sequence[Row], batches: Sequence[int], handles: dict[str, Any]) -> None:
    """Entries of a legend: a colour a strategy, a marker a batch size."""
    from matplotlib.lines import Line2D

    for strategy in sorted({row["strategy"] for row in rows}):
        handles.setdefault(strategy, Line2D([], [], color=colour(strategy), marker="s", linestyle="", markersize=6))
    for batch in batches if len(batches) > 1 else ():
        mark = MARKERS[batches.index(batch) % len(MARKERS)]
        handles.setdefault(f"batch {batch}", Line2D([], [], color=INK, marker=mark, linestyle="", markersize=4))


def _timed(group: Group) -> list[Row]:
    rows = [row for row in done(group.rows) if row["strategy"] != "full" and row.get("measured_speedup") is not None]
    return [row for row in rows if row.get("target_speedup")]


def _gap(values: Sequence[float]) -> float:
    """The least distance between two neighbours."""
    known = sorted(set(values))
    return min((b - a for a, b in pairwise(known)), default=0.5)


def throughput(groups: Sequence[Group]) -> Picture | None:
    """Tokens/s by batch size, a panel a target, full in each of them."""
    found = [(group, [row for row in done(group.rows) if row.get("total_tokens_per_second")]) for group in groups]
    found = [(group, rows) for group, rows in found if len({row["batch_size"] for row in rows}) > 1]
    if not found:
        return None
    group, rows = max(found, key=lambda item: len(item[1]))
    wanted = sorted({row["target_speedup"] for row in rows if row.get("target_speedup") and row["strategy"] != "full"})
    picked = wanted[:: -(-len(wanted) // 6)]
    if not picked:
        return None
    figure, axes = drawing.panels(len(picked), 3.3, 3.2, columns=3, sharey=True)
    handles: dict[str, Any] = {}
    for its, target in zip(axes, picked, strict=True):
        own = [row for row in rows if row["strategy"] == "full" or row.get("target_speedup") == target]
        for strategy in sorted({row["strategy"] for row in own}, key=lambda name: (name != "full", name)):
            by_batch = {row["batch_size"]: row["total_tokens_per_second"] for row in own if row["strategy"] == strategy}
            look = {"linestyle": "--"} if strategy == "full" else {}
            points = list(zip(*sorted(by_batch.items()), strict=True))
            (line,) = its.plot(*points, marker="o", markersize=4, linewidth=1.3, color=colour(strategy), **look)
            handles.setdefault(strategy, line)
        its.set_xscale("log", base=2)
        its.set_xticks(group.batches, [str(size) for size in group.batches])
        its.minorticks_off()
        its.set_title(f"{target:g}x")
        its.set_xlabel("batch size")
    axes[0].set_ylim(bottom=0)  # of all: they share it
    axes[0].set_ylabel("tokens/s, prompt included")
    figure.suptitle(_short(group.label), x=0.01, ha="left", fontsize=10)
    drawing.legend_below(figure, list(handles.values()), list(handles))
    return Picture("throughput", "Tokens a second by batch size, prompt and generated ids, as the paper counts.", figure)


def exits(groups: Sequence[Group]) -> Picture | None:
    """After how many layers tokens left the stack, a panel a point."""
    rows = [(group, row) for group in groups for row in done(group.rows) if row.get("exit_depths")][:6]
    if not rows:
        return None
    figure, axes = drawing.panels(len(rows), 3.3, 2.6, columns=3)
    for its, (group, row) in zip(axes, rows, strict=True):
        counts = {int(depth): count for depth, count in row["exit_depths"].items()}
        total = sum(counts.values()) or 1
        mean = sum(depth * count for depth, count in counts.items()) / total
        its.bar(list(counts), [count / total for count in counts.values()], color=colour(row["strategy"]), width=0.85)
        its.axvline(mean, color=INK, linestyle="--", linewidth=1)
        its.annotate(f"mean {mean:.1f}", (mean, 1), xycoords=("data", "axes fraction"), xytext=(4, -10),
                     textcoords="offset points", fontsize=8, color=INK)  # fmt: skip
        its.set_xlim(0.3, row["num_layers"] + 0.7)
        its.xaxis.get_major_locator().set_params(integer=True)
        its.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        its.set_title(f"{called(group, row)}, batch {row['batch_size']}")
        its.set_xlabel("layers run")
    axes[0].set_ylabel("share of tokens")
    return Picture("exits", "Exit depths: after how many layers each decoded token left the stack.", figure)


def strips(groups: Sequence[Group]) -> Picture | None:
    """Which layers every schedule keeps; paler where fewer of them run later on."""
    found: dict[str, Row] = {}
    for group in groups:
        for row in sorted(done(group.rows), key=lambda row: (row.get("target_speedup") or 0, row["strategy"])):
            if row.get("kept_layers"):
                target = f" {row['target_speedup']:g}x" if row.get("target_speedup") else ""
                found.setdefault(f"{group.approach(row)}{target} of {row['num_layers']}", row)
    if not found:
        return None
    rows = list(found.items())[:MOST_STRIPS]
    sizes = {row["num_layers"] for _, row in rows}
    figure, (axes,) = drawing.panels(1, 6.6, 0.7 + 0.24 * len(rows))
    for y, (_, row) in enumerate(rows):
        last, own = last_stage(row), colour(row["strategy"])
        kept = {layer: (own, 1.0 if layer in last else 0.45) for layer in row["kept_layers"]}
        fills = [kept.get(layer, (FAINT, 0.18)) for layer in range(row["num_layers"])]
        axes.broken_barh([(layer - 0.43, 0.86) for layer in range(len(fills))], (y - 0.36, 0.72), facecolors=fills)
    axes.set_yticks(range(len(rows)), [name if len(sizes) > 1 else name.rpartition(" of ")[0] for name, _ in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(-0.6, max(sizes) - 0.4)
    axes.set_xlabel("layer")
    axes.grid(visible=False)
    axes.spines[["left", "bottom"]].set_visible(False)
    paler = any(len(last_stage(row)) < len(row["kept_layers"]) for _, row in rows)
    return Picture("layers", f"Kept layers{'; paler ones do not run for every token' * paler}.", figure)


def last_stage(row: Row) -> set[int]:
    """The layers that run to the end; with exits those that run on average."""
    if row.get("exit_depths") and row.get("mean_kept_layers"):
        return set(range(round(row["mean_kept_layers"])))
    stages = row.get("later_stages") or []
    return set(stages[-1]["kept_layers"] if stages and "kept_layers" in stages[-1] else row["kept_layers"])


def _short(title: str) -> str:
    return title if len(title) <= LONGEST_TITLE else f"…{title[1 - LONGEST_TITLE :]}"
