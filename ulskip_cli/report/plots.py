"""Plots of results: quality against speed, speedup against target, throughput, exit depths, kept
layers, learning curves.
"""

import math
from collections.abc import Sequence
from itertools import cycle, pairwise
from pathlib import Path
from typing import Any

from ulskip_cli.experiments.record import Record, Row
from ulskip_cli.experiments.statistics import GATE, LOWER_IS_BETTER, TITLES, primary
from ulskip_cli.report import plot_style
from ulskip_cli.report.plot_style import (
    FAINT,
    INK,
    MARKERS,
    SavedPlot,
    annotate,
    draw_interval,
    save_figure,
    strategy_colour,
)
from ulskip_cli.report.rows import Group
from ulskip_cli.report.training import curve_label

MAX_PANELS = 4
MAX_POINTS = 120  # per panel
MAX_LABELS = 30
MAX_SCHEDULES = 24
# inches; three side by side are as wide as one large panel, so that all plots have type of one size
PANEL_WIDTH = 2.3
BARS = "Bars are confidence intervals; an arrowhead marks an interval that goes beyond the plot."
_Plot = tuple[str, Any]  # caption and figure


def save_plots(groups: Sequence[Group], gate: float, folder: Path) -> list[SavedPlot]:
    """Draw and save every plot that has rows; `gate` is the share of the full model's quality at
    which a line is drawn.
    """
    with plot_style.applied():
        drawn = {
            "quality": _quality(groups, gate),
            "targets": _targets(groups),
            "throughput": _throughput(groups),
        }
        drawn |= {"exits": _exits(groups), "layers": _kept_layers(groups)}
        return [
            SavedPlot(plot[0], save_figure(plot[1], folder / name))
            for name, plot in drawn.items()
            if plot
        ]


def save_quality(rows: Sequence[Record], path: Path, title: str = "") -> list[Path]:
    """Plot quality against measured speedup, or predicted speedup if none was measured; write no
    file without quality.
    """
    with plot_style.applied():
        plot = (
            None if primary(rows) == "decode_loss" else _quality([Group(title, list(rows))], GATE)
        )
        return save_figure(plot[1], path) if plot else []


def save_predictions(
    rows: Sequence[Record], path: Path, labels: Sequence[str], title: str = ""
) -> list[Path]:
    """Plot measured against predicted speedup, one colour per label; write no file without
    predictions.
    """
    drawn = [
        (row, label)
        for row, label in zip(rows, labels, strict=True)
        if row.value("predicted_speedup") is not None
    ]
    if not drawn:
        return []
    highest = max(
        max(row.value("predicted_speedup"), row.value("measured_speedup")) for row, _ in drawn
    )
    batches = sorted({row.batch_size for row, _ in drawn})
    names = list(dict.fromkeys(label for _, label in drawn))
    series = sorted({(row.batch_size, label) for row, label in drawn})
    with plot_style.applied():
        figure, (axes,) = plot_style.panels(1, 6.4, 4.8)
        lowest = min(1.0, *(row.value("measured_speedup") for row, _ in drawn))
        plot_style.limit_to(axes, [(lowest, lowest), (highest, highest)])
        for i, (batch, label) in enumerate(series):
            points = [row for row, name in drawn if (row.batch_size, name) == (batch, label)]
            aside = (
                (i - (len(series) - 1) / 2) * 0.015 * (highest - 1)
            )  # equal predictions are drawn side by side
            marker, colour = MARKERS[batches.index(batch) % len(MARKERS)], f"C{names.index(label)}"
            xs, ys = (
                [row.value("predicted_speedup") + aside for row in points],
                [row.value("measured_speedup") for row in points],
            )
            axes.plot(xs, ys, marker, color=colour, label=f"{label}, batch {batch}")
            for x, y, row in zip(xs, ys, points, strict=True):
                draw_interval(axes, (x, y), _interval(row), colour)
        axes.plot([1, highest], [1, highest], color=FAINT, linestyle="--", linewidth=1)
        axes.set(
            xlabel="predicted decode speedup, by bytes of weights",
            ylabel="measured decode speedup",
            title=title,
        )
        axes.legend()
        return save_figure(figure, path)


def learning_curve(record: Row, path: Path) -> list[Path]:
    """Plot the validation loss of training.json over steps, one line per target ratio or depth;
    write no file for one point.
    """
    curve = record["learning_curve"]
    if len(curve) < 2:
        return []
    with plot_style.applied():
        figure, (axes,) = plot_style.panels(1, 6.4, 4.2)
        for key in dict.fromkeys(key for point in curve for key in point["validation_loss"]):
            points = [
                (point["step"], point["validation_loss"][key])
                for point in curve
                if key in point["validation_loss"]
            ]
            axes.plot(*zip(*points, strict=True), marker=".", label=curve_label(key))
        axes.set(xlabel="step", ylabel="validation loss, nats per token")
        axes.legend()
        return save_figure(figure, path)


def pareto_front(
    points: Sequence[tuple[float, float]], lower_is_better: bool = False
) -> list[tuple[float, float]]:
    """Return the (speed, quality) points that no other point beats in both speed and quality,
    slowest first.
    """
    sign = -1 if lower_is_better else 1
    best, front = -math.inf, []
    for speed, value in sorted(points, key=lambda point: (-point[0], -sign * point[1])):
        if sign * value > best:
            best = sign * value
            front.append((speed, value))
    return front[::-1]


def _quality(groups: Sequence[Group], gate: float) -> _Plot | None:
    figure, panels = _panel_per_group([(group, _scored(group)) for group in groups])
    handles: dict[str, Any] = {}
    for axes, group, rows in panels:
        metric = str(primary(group.records))
        full = _draw_full(axes, group, metric, gate)
        at_gate = [(1.0, gate * value) for _, value in full if metric not in LOWER_IS_BETTER]
        plot_style.limit_to(
            axes, [*((_speedup(row), row.value(metric)) for row in rows), *full, *at_gate]
        )
        axes.set_ylim(
            bottom=max(axes.get_ylim()[0], -0.02 * axes.get_ylim()[1])
        )  # no score is below 0
        front = pareto_front(
            [*((_speedup(row), row.value(metric)) for row in rows), *full],
            metric in LOWER_IS_BETTER,
        )
        if len(front) > 1:
            look = {
                "color": FAINT,
                "linewidth": 6,
                "alpha": 0.3,
                "zorder": 1,
                "solid_capstyle": "round",
            }
            handles.setdefault("Pareto front", axes.plot(*zip(*front, strict=True), **look)[0])
        for strategy in dict.fromkeys(row.label for row in rows):
            drawn = sorted((row for row in rows if row.label == strategy), key=_speedup)
            handles.setdefault(strategy, _draw_strategy(axes, drawn, metric, strategy))
        for row in rows if len(rows) <= MAX_LABELS else ():
            label = (
                f"{row.value('target_speedup'):g}x"
                if row.value("target_speedup")
                else f"{len(row.kept_layers or ())} layers"
            )
            annotate(axes, label, (_speedup(row), row.value(metric)), (5, 5))
        kind = "predicted" if rows[0].measured_speedup is None else "measured"
        axes.set(
            xlabel=f"{kind} decode speedup, batch size {rows[0].batch_size}", ylabel=TITLES[metric]
        )
    plot_style.legend_below(figure, handles)
    caption = (
        f"Quality against decode speedup. {BARS} The grey band is the Pareto front: no point beats"
        " it in both."
    )
    return (caption, figure) if panels else None


def _speedup(row: Record) -> float:
    return float(
        row.value("measured_speedup") or row.value("predicted_speedup") or row.value("layer_ratio")
    )


def _interval(row: Record) -> tuple[float, float]:
    middle = row.value("measured_speedup")
    return row.value("measured_speedup_low") or middle, row.value("measured_speedup_high") or middle


def _scored(group: Group) -> list[Record]:
    """Select rows with quality at the smallest batch size; drop rows without a measured speedup if
    other rows have one.
    """
    metric = primary(group.records)
    rows = [
        row for row in group.done if not row.keeps_all and metric and row.value(metric) is not None
    ]
    rows = [row for row in rows if row.value("measured_speedup") is not None] or rows
    smallest = min((row.batch_size for row in rows), default=None)
    return [row for row in rows if row.batch_size == smallest]


def _panel_per_group(
    groups: Sequence[tuple[Group, list[Record]]],
) -> tuple[Any, list[tuple[Any, Group, list[Record]]]]:
    """Return a figure with one panel for each of the largest groups; of too many rows, only every
    n-th row is drawn.
    """
    ranked = sorted(
        (i for i, (_, rows) in enumerate(groups) if rows), key=lambda i: -len(groups[i][1])
    )[:MAX_PANELS]
    if not ranked:
        return None, []
    figure, each = plot_style.panels(len(ranked), 6.6 if len(ranked) == 1 else 4.8, 4.2)
    shown = [(axes, *groups[i]) for axes, i in zip(each, sorted(ranked), strict=True)]
    for axes, group, _ in shown:
        axes.set_title(
            plot_style.shortened(group.label, plot_style.MAX_TITLE + 22 * (len(shown) == 1))
        )
    return figure, [
        (axes, group, rows[:: -(-len(rows) // MAX_POINTS)]) for axes, group, rows in shown
    ]


def _draw_full(axes: Any, group: Group, metric: str, gate: float) -> list[tuple[float, float]]:
    """Draw the full model and the quality gate; return the full model's point, or an empty list
    without a full row.
    """
    row = next((row for row in group.done if row.keeps_all and row.value(metric) is not None), None)
    if row is None:
        return []
    colour, value = strategy_colour("full"), row.value(metric)
    axes.axhline(value, color=colour, linestyle="--", linewidth=1)
    axes.plot([1], [value], marker="D", color=colour, markersize=5)
    annotate(axes, "full", (1, value), (4, 4))
    if metric not in LOWER_IS_BETTER:
        axes.axhline(gate * value, color=colour, linestyle=":", linewidth=1)
        left = {"xycoords": axes.get_yaxis_transform(), "va": "top"}
        annotate(axes, f"quality gate: {gate:.0%} of full", (0, gate * value), (3, -3), **left)
    return [(1.0, value)]


def _draw_strategy(axes: Any, rows: Sequence[Record], metric: str, strategy: str) -> Any:
    """Draw one strategy's points with intervals; a line joins them if every target occurs once."""
    xs, ys, colour = (
        [_speedup(row) for row in rows],
        [row.value(metric) for row in rows],
        strategy_colour(strategy),
    )
    joined = len(rows) <= MAX_LABELS and len({row.value("target_speedup") for row in rows}) == len(
        rows
    )
    (drawn,) = axes.plot(
        xs, ys, "o-" if joined else "o", color=colour, markersize=5, linewidth=1.2, zorder=3
    )
    for x, y, row in zip(xs, ys, rows, strict=True):
        if row.value("measured_speedup_low") is not None:
            draw_interval(axes, (x, y), _interval(row), colour, across=True)
        if difference := row.vs_baseline.get(metric):
            ends = (
                max(0.0, difference.full + difference.delta_low),
                difference.full + difference.delta_high,
            )
            draw_interval(axes, (x, y), ends, colour)
    return drawn


def _targets(groups: Sequence[Group]) -> _Plot | None:
    timed = [
        [row for row in group.done if row.value("measured_speedup") is not None] for group in groups
    ]
    asked = [
        [row for row in rows if not row.keeps_all and row.value("target_speedup")] for rows in timed
    ]
    figure, panels = _panel_per_group(list(zip(groups, asked, strict=True)))
    handles: dict[str, Any] = {}
    for axes, _, rows in panels:
        targets = sorted({row.value("target_speedup") for row in rows})
        batches = sorted({row.batch_size for row in rows})
        series = sorted({(row.label, row.batch_size) for row in rows})
        known: list[tuple[float, float]] = []
        ends = [1, targets[-1]]
        values = [row.value("measured_speedup") for row in rows] + [
            row.value("predicted_speedup") for row in rows if row.value("predicted_speedup")
        ]
        plot_style.limit_to(axes, [(ends[0], min(values)), (ends[1] + 0.1, max(values))])
        step = 0.5 * min((b - a for a, b in pairwise(targets)), default=0.5) / len(series)
        for i, (strategy, batch) in enumerate(series):
            points = [row for row in rows if (row.label, row.batch_size) == (strategy, batch)]
            xs = [
                row.value("target_speedup") + (i - (len(series) - 1) / 2) * step for row in points
            ]
            marker, colour = MARKERS[batches.index(batch) % len(MARKERS)], strategy_colour(strategy)
            axes.plot(
                xs,
                [row.value("measured_speedup") for row in points],
                marker,
                markersize=4,
                color=colour,
            )
            for x, row in zip(xs, points, strict=True):
                draw_interval(axes, (x, row.value("measured_speedup")), _interval(row), colour)
            handles.setdefault(strategy, axes.plot([], [], "s", markersize=6, color=colour)[0])
            known += [
                (x, row.value("predicted_speedup"))
                for x, row in zip(xs, points, strict=True)
                if row.value("predicted_speedup")
            ]
        for batch, marker in zip(batches, cycle(MARKERS), strict=False) if len(batches) > 1 else ():
            handles.setdefault(
                f"batch {batch}", axes.plot([], [], marker, markersize=4, color=INK)[0]
            )
        if known:
            ticks = axes.scatter(
                *zip(*known, strict=True), marker="_", color=INK, s=40, linewidth=1, zorder=4
            )
            handles.setdefault("predicted", ticks)
        handles.setdefault(
            "equal to the target",
            axes.plot(ends, ends, color=FAINT, linestyle="--", linewidth=1)[0],
        )
        axes.set_xticks(targets, [f"{target:g}x" for target in targets])
        axes.set(xlabel="target speedup", ylabel="measured decode speedup")
    plot_style.legend_below(figure, handles)
    return (f"Measured decode speedup against the target. {BARS}", figure) if panels else None


def _throughput(groups: Sequence[Group]) -> _Plot | None:
    measured = [
        (group, [row for row in group.done if row.total_tokens_per_second]) for group in groups
    ]
    measured = [
        (group, rows) for group, rows in measured if len({row.batch_size for row in rows}) > 1
    ]
    group, rows = max(measured, key=lambda item: len(item[1]), default=(None, []))
    targets = sorted(
        {
            row.value("target_speedup")
            for row in rows
            if row.value("target_speedup") and not row.keeps_all
        }
    )
    if group is None or not targets:
        return None
    targets = targets[:: -(-len(targets) // 6)]
    figure, each = plot_style.panels(len(targets), PANEL_WIDTH, 2.8, columns=3, sharey=True)
    handles: dict[str, Any] = {}
    for axes, target in zip(each, targets, strict=True):
        drawn = [row for row in rows if row.keeps_all or row.value("target_speedup") == target]
        for strategy in sorted(
            {row.label for row in drawn}, key=lambda name: (name != "full", name)
        ):
            by_batch = {
                row.batch_size: row.total_tokens_per_second
                for row in drawn
                if row.label == strategy
            }
            look = {
                "marker": "o",
                "markersize": 4,
                "linewidth": 1.3,
                "linestyle": "--" if strategy == "full" else "-",
            }
            (line,) = axes.plot(
                *zip(*sorted(by_batch.items()), strict=True),
                color=strategy_colour(strategy),
                **look,
            )
            handles.setdefault(strategy, line)
        axes.set_xscale("log", base=2)
        axes.set_xticks(group.batches, [str(size) for size in group.batches])
        axes.minorticks_off()
        axes.set(title=f"{target:g}x", xlabel="batch size")
    each[0].set_ylim(bottom=0)  # all panels share the axis
    each[0].set_ylabel("tokens/s, prompt included")
    figure.suptitle(plot_style.shortened(group.label), x=0.01, ha="left", fontsize=10)
    plot_style.legend_below(figure, handles)
    return (
        (
            "Tokens per second by batch size, one panel per target. Prompt and generated tokens"
            " count, as in the paper."
        ),
        figure,
    )


def _exits(groups: Sequence[Group]) -> _Plot | None:
    rows = [(group, row) for group in groups for row in group.done if row.value("exit_depths")][:6]
    if not rows:
        return None
    figure, each = plot_style.panels(len(rows), PANEL_WIDTH, 2.4, columns=3)
    for axes, (group, row) in zip(each, rows, strict=True):
        counts = {int(depth): count for depth, count in row.value("exit_depths").items()}
        total = sum(counts.values()) or 1
        mean = sum(depth * count for depth, count in counts.items()) / total
        shares = [count / total for count in counts.values()]
        axes.bar(list(counts), shares, color=strategy_colour(row.strategy), width=0.85)
        axes.axvline(mean, color=INK, linestyle="--", linewidth=1)
        annotate(axes, f"mean {mean:.1f}", (mean, 1), (4, -10), xycoords=("data", "axes fraction"))
        axes.set(xlim=(0.3, row.value("num_layers") + 0.7), xlabel="layers run")
        axes.set_title(f"{group.called(row)}, batch {row.value('batch_size')}")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    each[0].set_ylabel("share of tokens")
    return "Exit depths of early exit: how many layers each decoded token ran.", figure


def _kept_layers(groups: Sequence[Group]) -> _Plot | None:
    schedules: dict[tuple[str, int], Record] = {}
    for group in groups:
        for row in sorted(
            group.done, key=lambda row: (row.value("target_speedup") or 0, row.strategy)
        ):
            if row.value("kept_layers"):
                target = f" {row.value('target_speedup'):g}x" if row.value("target_speedup") else ""
                schedules.setdefault(
                    (f"{group.approach(row)}{target}", row.value("num_layers")), row
                )
    if not schedules:
        return None
    shown = list(schedules.items())[:MAX_SCHEDULES]
    depths = {depth for (_, depth), _ in shown}
    names = [f"{name} of {depth}" if len(depths) > 1 else name for (name, depth), _ in shown]
    figure, (axes,) = plot_style.panels(1, 6.6, 0.7 + 0.24 * len(shown))
    for y, ((_, depth), row) in enumerate(shown):
        last, colour = row.last_stage, strategy_colour(row.strategy)
        kept = {
            layer: (colour, 1.0 if layer in last else 0.45) for layer in row.value("kept_layers")
        }
        fills = [kept.get(layer, (FAINT, 0.18)) for layer in range(depth)]
        axes.broken_barh(
            [(layer - 0.43, 0.86) for layer in range(depth)], (y - 0.36, 0.72), facecolors=fills
        )
    axes.set_yticks(range(len(names)), names)
    axes.set(ylim=(len(names) - 0.4, -0.6), xlim=(-0.6, max(depths) - 0.4), xlabel="layer")
    axes.grid(visible=False)
    axes.spines[["left", "bottom"]].set_visible(False)
    paler = any(len(row.last_stage) < len(row.value("kept_layers")) for _, row in shown)
    return (
        f"Kept layers of each schedule{'; pale layers do not run for every token' * paler}.",
        figure,
    )
