"""Plots of results: quality against speed, speedup against target, throughput, exit depths, kept
layers, learning curves.
"""

from collections.abc import Iterable, Sequence
from itertools import cycle, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from ulskip_cli.report.rows import Group, collected
from ulskip_cli.report.training import curve_label

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

MAX_PANELS = 4
MAX_POINTS = 120  # per panel
MAX_LABELS = 30
MAX_SCHEDULES = 24
# inches; three side by side are as wide as one large panel, so that all plots have type of one size
PANEL_WIDTH = 2.3
BARS = "Bars are confidence intervals; an arrowhead marks an interval that goes beyond the plot."
Drawn = tuple[str, "Figure"]  # caption and figure
Shown = Sequence[tuple[Group, Sequence[Record]]]  # groups with the records that a plot shows


def save_plots(groups: Sequence[Group], gate: float, folder: Path) -> list[SavedPlot]:
    """Draw and save every plot that has rows; `gate` is the share of the full model's quality at
    which a line is drawn.
    """
    saved = []
    with plot_style.applied():
        plots = {
            "quality": _quality(groups, gate),
            "targets": _targets(groups),
            "throughput": _throughput(groups),
            "exits": _exits(groups),
            "layers": _kept_layers(groups),
        }
        for name, plot in plots.items():
            if plot:
                caption, figure = plot
                width, height = figure.get_size_inches()
                saved.append(SavedPlot(caption, width / height, save_figure(figure, folder / name)))
    return saved


def save_quality(rows: Sequence[Record], path: Path, title: str = "") -> list[Path]:
    """Plot quality against measured speedup, or predicted speedup if none was measured; write no
    file without quality.
    """
    if primary(rows) == "decode_loss":
        return []
    with plot_style.applied():
        plot = _quality([Group(title, list(rows))], GATE)
        return save_figure(plot[1], path) if plot else []


def save_predictions(
    rows: Sequence[Record], path: Path, labels: Sequence[str], title: str = ""
) -> list[Path]:
    """Plot measured against predicted speedup, one colour per label; write no file without
    predictions.
    """
    drawn = [pair for pair in zip(rows, labels, strict=True) if pair[0].predicted_speedup]
    if not drawn:
        return []
    speedups = [row.measured_speedup or 1.0 for row, _ in drawn]
    highest = max(*speedups, *(row.predicted_speedup or 1.0 for row, _ in drawn))
    names = list(dict.fromkeys(label for _, label in drawn))
    series = sorted(collected(drawn, lambda pair: (pair[0].batch_size, pair[1])).items())
    markers = _markers(batch for (batch, _), _ in series)
    with plot_style.applied():
        figure, (axes,) = plot_style.panels(1, 6.4, 4.8)
        plot_style.limit_to(axes, [(min(1.0, *speedups),) * 2, (highest, highest)])
        for i, ((batch, label), pairs) in enumerate(series):
            # equal predictions are drawn side by side
            aside = (i - (len(series) - 1) / 2) * 0.015 * (highest - 1)
            points = [((row.predicted_speedup or 1.0) + aside, row) for row, _ in pairs]
            colour = f"C{names.index(label)}"
            line = _draw_measured(axes, points, marker=markers[batch], color=colour)
            line.set_label(f"{label}, batch {batch}")
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
            points = [point for point in curve if key in point["validation_loss"]]
            losses = [point["validation_loss"][key] for point in points]
            steps = [point["step"] for point in points]
            axes.plot(steps, losses, marker=".", label=curve_label(key))
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
    front: list[tuple[float, float]] = []
    for speed, value in sorted(points, key=lambda point: (-point[0], -sign * point[1])):
        if not front or sign * value > sign * front[-1][1]:
            front.append((speed, value))
    return front[::-1]


def draw_front(axes: "Axes", front: Sequence[tuple[float, float]]) -> "Artist":
    """Draw a Pareto front as a broad grey band."""
    xs, ys = zip(*front, strict=True)
    (band,) = axes.plot(xs, ys, color=FAINT, linewidth=6, alpha=0.3, zorder=1)
    band.set_solid_capstyle("round")
    return band


def _quality(groups: Sequence[Group], gate: float) -> Drawn | None:
    figure, panels = _panel_per_group([(group, _scored(group)) for group in groups])
    handles: dict[str, Artist] = {}
    for axes, group, rows in panels:
        metric = str(primary(group.records))
        full = _draw_full(axes, group, metric, gate)
        points = [*((_speedup(row), row.value(metric)) for row in rows), *full]
        at_gate = [(1.0, gate * value) for _, value in full if metric not in LOWER_IS_BETTER]
        plot_style.limit_to(axes, [*points, *at_gate])
        low, high = axes.get_ylim()
        axes.set_ylim(bottom=max(low, -0.02 * high))  # no score is below 0
        front = pareto_front(points, metric in LOWER_IS_BETTER)
        if len(front) > 1:
            handles.setdefault("Pareto front", draw_front(axes, front))
        for label, drawn in collected(rows, lambda row: row.label).items():
            handles.setdefault(label, _draw_strategy(axes, sorted(drawn, key=_speedup), metric))
        for row in rows if len(rows) <= MAX_LABELS else ():
            target, count = row.target_speedup, len(row.kept_layers or ())
            label = f"{target:g}x" if target else f"{count} layers"
            annotate(axes, label, (_speedup(row), row.value(metric)), (5, 5))
        kind = "predicted" if rows[0].measured_speedup is None else "measured"
        axes.set(
            xlabel=f"{kind} decode speedup, batch size {rows[0].batch_size}", ylabel=TITLES[metric]
        )
    caption = (
        f"Quality against decode speedup. {BARS} The grey band is the Pareto front: no point beats"
        " it in both."
    )
    return _with_legend(caption, figure, handles)


def _with_legend(
    caption: str, figure: "Figure | None", handles: "dict[str, Artist]"
) -> Drawn | None:
    if figure is None:
        return None
    plot_style.legend_below(figure, handles)
    return caption, figure


def _speedup(row: Record) -> float:
    return row.measured_speedup or row.predicted_speedup or row.layer_ratio or 1.0


def _interval(row: Record) -> tuple[float, float]:
    middle = row.measured_speedup or 1.0
    return row.measured_speedup_low or middle, row.measured_speedup_high or middle


def _scored(group: Group) -> list[Record]:
    """Select rows with quality at the smallest batch size; drop rows without a measured speedup if
    other rows have one.
    """
    metric = primary(group.records)
    rows = [row for row in group.done if not row.keeps_all and row.value(metric or "") is not None]
    rows = [row for row in rows if row.measured_speedup is not None] or rows
    smallest = min((row.batch_size for row in rows), default=None)
    return [row for row in rows if row.batch_size == smallest]


def _panel_per_group(
    groups: Shown,
) -> "tuple[Figure | None, list[tuple[Axes, Group, Sequence[Record]]]]":
    """Return a figure with one panel for each of the largest groups; of too many rows, only every
    n-th row is drawn.
    """
    ranked = sorted(range(len(groups)), key=lambda i: -len(groups[i][1]))[:MAX_PANELS]
    kept = [groups[i] for i in sorted(ranked) if groups[i][1]]
    if not kept:
        return None, []
    width, most = (
        (6.6, plot_style.MAX_TITLE + 22) if len(kept) == 1 else (4.8, plot_style.MAX_TITLE)
    )
    figure, each = plot_style.panels(len(kept), width, 4.2)
    for axes, (group, _) in zip(each, kept, strict=True):
        axes.set_title(plot_style.shortened(group.label, most))
    return figure, [
        (axes, group, rows[:: -(-len(rows) // MAX_POINTS)])
        for axes, (group, rows) in zip(each, kept, strict=True)
    ]


def _draw_full(axes: "Axes", group: Group, metric: str, gate: float) -> list[tuple[float, float]]:
    """Draw the full model and the quality gate; return the full model's point, or an empty list
    without a full row.
    """
    scores = [row.value(metric) for row in group.done if row.keeps_all]
    value = next((score for score in scores if score is not None), None)
    if value is None:
        return []
    colour = strategy_colour("full")
    axes.axhline(value, color=colour, linestyle="--", linewidth=1)
    axes.plot([1], [value], marker="D", color=colour, markersize=5)
    annotate(axes, "full", (1, value), (4, 4))
    if metric not in LOWER_IS_BETTER:
        axes.axhline(gate * value, color=colour, linestyle=":", linewidth=1)
        left = {"xycoords": axes.get_yaxis_transform(), "va": "top"}
        annotate(axes, f"quality gate: {gate:.0%} of full", (0, gate * value), (3, -3), **left)
    return [(1.0, value)]


def _draw_strategy(axes: "Axes", rows: Sequence[Record], metric: str) -> "Line2D":
    """Draw one strategy's points with intervals; a line joins them if every target occurs once."""
    colour, targets = strategy_colour(rows[0].label), {row.target_speedup for row in rows}
    xs, ys = [_speedup(row) for row in rows], [row.value(metric) for row in rows]
    form = "o-" if len(rows) <= MAX_LABELS and len(targets) == len(rows) else "o"
    (drawn,) = axes.plot(xs, ys, form, color=colour, markersize=5, linewidth=1.2, zorder=3)
    for x, y, row in zip(xs, ys, rows, strict=True):
        if row.measured_speedup_low is not None:
            draw_interval(axes, (x, y), _interval(row), colour, across=True)
        if difference := row.vs_baseline.get(metric):
            low, high = (
                difference.full + delta for delta in (difference.delta_low, difference.delta_high)
            )
            draw_interval(axes, (x, y), (max(0.0, low), high), colour)
    return drawn


def _markers(batches: Iterable[int]) -> dict[int, str]:
    return dict(zip(sorted(set(batches)), cycle(MARKERS), strict=False))


def _draw_measured(axes: "Axes", points: Sequence[tuple[float, Record]], **look: Any) -> "Line2D":
    """Draw measured speedups with intervals at the given positions."""
    ys = [row.measured_speedup or 1.0 for _, row in points]
    (line,) = axes.plot([x for x, _ in points], ys, linestyle="none", **look)
    for (x, row), y in zip(points, ys, strict=True):
        draw_interval(axes, (x, y), _interval(row), look["color"])
    return line


def _targets(groups: Sequence[Group]) -> Drawn | None:
    asked = [
        [row for row in group.done if row.measured_speedup and row.target_speedup]
        for group in groups
    ]
    skipping = [[row for row in rows if not row.keeps_all] for rows in asked]
    figure, panels = _panel_per_group(list(zip(groups, skipping, strict=True)))
    handles: dict[str, Artist] = {}
    for axes, _, rows in panels:
        targets = sorted({row.target_speedup or 1.0 for row in rows})
        series = sorted(collected(rows, lambda row: (row.label, row.batch_size)).items())
        markers = _markers(row.batch_size for row in rows)
        ends = [1, targets[-1]]
        values = [row.measured_speedup or 1.0 for row in rows]
        values += [row.predicted_speedup for row in rows if row.predicted_speedup]
        plot_style.limit_to(axes, [(1, min(values)), (ends[1] + 0.1, max(values))])
        step = 0.5 * min((b - a for a, b in pairwise(targets)), default=0.5) / len(series)
        at: list[tuple[float, Record]] = []
        for i, ((label, batch), same) in enumerate(series):
            aside, colour = (i - (len(series) - 1) / 2) * step, strategy_colour(label)
            points = [((row.target_speedup or 1.0) + aside, row) for row in same]
            _draw_measured(axes, points, marker=markers[batch], color=colour, markersize=4)
            handles.setdefault(label, axes.plot([], [], "s", markersize=6, color=colour)[0])
            at += [(x, row) for x, row in points if row.predicted_speedup]
        for batch, marker in markers.items() if len(markers) > 1 else ():
            (key,) = axes.plot([], [], marker, markersize=4, color=INK)
            handles.setdefault(f"batch {batch}", key)
        if at:
            xs, ys = [x for x, _ in at], [row.predicted_speedup or 1.0 for _, row in at]
            ticks = axes.scatter(xs, ys, marker="_", color=INK, s=40, linewidth=1, zorder=4)
            handles.setdefault("predicted", ticks)
        (line,) = axes.plot(ends, ends, color=FAINT, linestyle="--", linewidth=1)
        handles.setdefault("equal to the target", line)
        axes.set_xticks(targets, [f"{target:g}x" for target in targets])
        axes.set(xlabel="target speedup", ylabel="measured decode speedup")
    return _with_legend(f"Measured decode speedup against the target. {BARS}", figure, handles)


def _throughput(groups: Sequence[Group]) -> Drawn | None:
    measured = [
        (group, [row for row in group.done if row.total_tokens_per_second]) for group in groups
    ]
    measured = [pair for pair in measured if len({row.batch_size for row in pair[1]}) > 1]
    group, rows = max(measured, key=lambda pair: len(pair[1]), default=(None, []))
    targets = sorted(
        {row.target_speedup for row in rows if row.target_speedup and not row.keeps_all}
    )
    if group is None or not targets:
        return None
    targets = targets[:: -(-len(targets) // 6)]
    figure, each = plot_style.panels(len(targets), PANEL_WIDTH, 2.8, columns=3, sharey=True)
    handles: dict[str, Artist] = {}
    for axes, target in zip(each, targets, strict=True):
        shown = [row for row in rows if row.keeps_all or row.target_speedup == target]
        lines = collected(shown, lambda row: row.label)
        for label in sorted(lines, key=lambda label: (label != "full", label)):
            by_size = {row.batch_size: row.total_tokens_per_second or 0.0 for row in lines[label]}
            sizes = sorted(by_size)
            (line,) = axes.plot(sizes, [by_size[size] for size in sizes], marker="o", markersize=4)
            line.set(linestyle="--" if label == "full" else "-", linewidth=1.3)
            line.set_color(strategy_colour(label))
            handles.setdefault(label, line)
        axes.set_xscale("log", base=2)
        axes.set_xticks(group.batches, list(map(str, group.batches)))
        axes.minorticks_off()
        axes.set(title=f"{target:g}x", xlabel="batch size")
    each[0].set_ylim(bottom=0)  # all panels share the axis
    each[0].set_ylabel("tokens/s, prompt included")
    figure.suptitle(plot_style.shortened(group.label), x=0.01, ha="left", fontsize=10)
    caption = (
        "Tokens per second by batch size, one panel per target. Prompt and generated tokens"
        " count, as in the paper."
    )
    return _with_legend(caption, figure, handles)


def _exits(groups: Sequence[Group]) -> Drawn | None:
    rows = [(group, row) for group in groups for row in group.done if row.exit_depths][:6]
    if not rows:
        return None
    figure, each = plot_style.panels(len(rows), PANEL_WIDTH, 2.4, columns=3)
    for axes, (group, row) in zip(each, rows, strict=True):
        counts = {int(depth): count for depth, count in (row.exit_depths or {}).items()}
        total = sum(counts.values()) or 1
        mean = sum(depth * count for depth, count in counts.items()) / total
        shares = [count / total for count in counts.values()]
        axes.bar(list(counts), shares, color=strategy_colour(row.strategy), width=0.85)
        axes.axvline(mean, color=INK, linestyle="--", linewidth=1)
        annotate(axes, f"mean {mean:.1f}", (mean, 1), (4, -10), xycoords=("data", "axes fraction"))
        axes.set(xlim=(0.3, (row.num_layers or 0) + 0.7), xlabel="layers run")
        axes.set_title(f"{group.called(row)}, batch {row.batch_size}")
        axes.locator_params(axis="x", integer=True)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    each[0].set_ylabel("share of tokens")
    return "Exit depths of early exit: how many layers each decoded token ran.", figure


def _kept_layers(groups: Sequence[Group]) -> Drawn | None:
    schedules: dict[tuple[object, ...], tuple[str, Record]] = {}
    for group in groups:
        for row in sorted(group.done, key=lambda row: (row.target_speedup or 0, row.strategy)):
            if row.kept_layers:
                target = f" {row.target_speedup:g}x" if row.target_speedup else ""
                name = f"{group.approach(row)}{target}"
                drawn = name, row.num_layers, row.kept_layers
                schedules.setdefault(drawn, (name, row))
    shown = list(schedules.values())[:MAX_SCHEDULES]
    if not shown:
        return None
    depths = {row.num_layers or 0 for _, row in shown}
    names = [f"{name} of {row.num_layers}" if len(depths) > 1 else name for name, row in shown]
    figure, (axes,) = plot_style.panels(1, 6.6, 0.7 + 0.24 * len(shown))
    for y, (_, row) in enumerate(shown):
        depth = row.num_layers or 0
        fills: list[tuple[str, float]] = [(FAINT, 0.18)] * depth
        for layer in row.kept_layers or ():
            fills[layer] = strategy_colour(row.strategy), 1.0 if layer in row.last_stage else 0.45
        bars = [(layer - 0.43, 0.86) for layer in range(depth)]
        axes.broken_barh(bars, (y - 0.36, 0.72), facecolors=fills)
    axes.set_yticks(range(len(names)), names)
    axes.set(ylim=(len(names) - 0.4, -0.6), xlim=(-0.6, max(depths) - 0.4), xlabel="layer")
    axes.grid(visible=False)
    axes.spines[["left", "bottom"]].set_visible(False)
    paler = any(len(row.last_stage) < len(row.kept_layers or ()) for _, row in shown)
    caption = f"Kept layers of each schedule{'; pale layers do not run for every token' * paler}."
    return caption, figure
