"""Plots of results: quality against speed, speedup against target or prediction, exit depths, kept
layers, learning curves; and the style of all plots.
"""

import base64
import colorsys
import io
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import cycle, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from ulskip_cli.core.files import write_atomic
from ulskip_cli.experiments.record import Record, Row
from ulskip_cli.experiments.statistics import GATE, LOWER_IS_BETTER, TITLES, primary
from ulskip_cli.report.rows import Group, collected
from ulskip_cli.report.tables import shortened

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

INK, FAINT = "#24303c", "#8a97a5"  # text and axes; grids and reference lines
# Colours that colour-blind readers can tell apart (Okabe and Ito).
COLOURS = {
    "full": "#7f8b97",
    "unified": "#0a7bc2",
    "top_skip": "#e69f00",
    "bottom_skip": "#009e73",
    "early_exit": "#d55e00",
    "skip_decode": "#cc79a7",
    "block_influence": "#7b61c9",
    "one_block": "#b0466f",
    "search": "#3d9ca8",
    "custom": "#8c6d46",
}
MARKERS = "osD^vP*X"
_STYLE: Any = {
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "xtick.color": INK,
    "ytick.color": INK,
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.alpha": 0.22,
    "grid.linewidth": 0.6,
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial"],  # named with every text of an SVG
    "text.parse_math": False,  # names of rows are no formulas
    # text stays text; the same figure gives the same file
    "svg.fonttype": "none",
    "svg.hashsalt": "ulskip",
}
BAR: Any = {"linewidth": 1.1, "alpha": 0.8}  # look of an interval
MAX_PANELS = 4
MAX_POINTS = 120  # per panel
MAX_LABELS = 30
MAX_SCHEDULES = 24
MAX_EXITS = 6
MAX_TITLE = 58  # characters over half a figure
MAX_NAME = 40  # characters of a schedule beside its layers
BARS = "Bars are confidence intervals; long ones go beyond the plot."
Drawn = tuple[str, "Figure"]  # caption and figure
LETTERS_PER_INCH = 15  # of a legend
Handles = dict[str, "Artist"]  # of a legend, by label


class SavedPlot(NamedTuple):
    """A plot that is written to disk."""

    caption: str  # what the plot shows
    aspect: float  # width over height
    files: list[Path]  # the PNG and the SVG

    @property
    def data_uri(self) -> str:
        """The SVG encoded as the source of an image element."""
        return "data:image/svg+xml;base64," + base64.b64encode(self.files[1].read_bytes()).decode()


def save_plots(groups: Sequence[Group], gate: float, folder: Path) -> list[SavedPlot]:
    """Draw and save every plot that has rows; `gate` is the share of the full model's quality at
    which a line is drawn.
    """
    saved = []
    with applied():
        plots = {
            "quality": _quality(groups, gate),
            "targets": _targets(groups),
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
    with applied():
        plot = _quality([Group(title, list(rows))], GATE)
        return save_figure(plot[1], path) if plot else []


def save_predictions(
    rows: Sequence[Record], path: Path, name_of: Callable[[Record], str], title: str = ""
) -> list[Path]:
    """Plot measured against predicted speedup, one colour per name; write no file without
    predictions.
    """
    rows = [row for row in rows if row.predicted_speedup and row.measured_speedup]
    if not rows:
        return []
    names = sorted(set(map(name_of, rows)))
    with applied():
        figure, (axes,) = panels(1, 6.4, 4.8)
        handles = _draw_measured(
            axes, rows, "predicted_speedup", name_of, lambda name: f"C{names.index(name)}"
        )
        axes.set(xlabel="predicted decode speedup, by bytes of weights", title=title)
        legend_below(figure, handles)
        return save_figure(figure, path)


def learning_curve(record: Row, path: Path) -> list[Path]:
    """Plot the validation loss of training.json over steps, one line per target ratio or depth;
    write no file for one point.
    """
    curve = record["learning_curve"]
    if len(curve) < 2:
        return []
    steps = [point["step"] for point in curve]
    losses = pd.DataFrame([point["validation_loss"] for point in curve], index=steps)
    with applied():
        figure, (axes,) = panels(1, 6.4, 4.2)
        for key, line in losses.items():
            axes.plot(line.dropna(), marker=".", label=curve_label(str(key)))
        axes.set(xlabel="step", ylabel="validation loss, nats per token")
        axes.legend()
        return save_figure(figure, path)


def curve_label(key: str) -> str:
    """Return the label of one line of a learning curve.

    The key of a schedule is its target ratio. The key of an exit is its depth; older records use
    depths for all lines.

    >>> curve_label("2x"), curve_label("6")
    ('2x', '6 layers')
    """
    return key if key.endswith("x") else f"{key} layers"


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
    figure, shown = _panel_per_group([(group, _scored(group)) for group in groups])
    if figure is None:
        return None
    handles: Handles = {}
    for axes, group, rows in shown:
        metric = str(primary(group.records))
        full = _draw_full(axes, group, metric, gate)
        points = [*((_speedup(row), row.value(metric)) for row in rows), *full]
        at_gate = [(1.0, gate * value) for _, value in full if metric not in LOWER_IS_BETTER]
        limit_to(axes, [*points, *at_gate])
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
    legend_below(figure, handles)
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
    groups: Sequence[tuple[Group, Sequence[Record]]],
) -> "tuple[Figure | None, list[tuple[Axes, Group, Sequence[Record]]]]":
    """Return a figure with one panel for each of the largest groups; of too many rows, only every
    n-th row is drawn.
    """
    ranked = sorted(range(len(groups)), key=lambda i: -len(groups[i][1]))[:MAX_PANELS]
    kept = [groups[i] for i in sorted(ranked) if groups[i][1]]
    if not kept:
        return None, []
    width, most = (6.6, MAX_TITLE + 22) if len(kept) == 1 else (4.8, MAX_TITLE)
    figure, each = panels(len(kept), width, 4.2)
    for axes, (group, _) in zip(each, kept, strict=True):
        axes.set_title(shortened(group.label, most))
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


def _draw_strategy(axes: "Axes", rows: Sequence[Record], metric: str) -> "Artist":
    """Draw one strategy's points with intervals; a line joins them if every target occurs once."""
    colour, targets = strategy_colour(rows[0].label), {row.target_speedup for row in rows}
    form = "o-" if len(rows) <= MAX_LABELS and len(targets) == len(rows) else "o"
    xs, ys = list(map(_speedup, rows)), [row.value(metric) for row in rows]
    (drawn,) = axes.plot(xs, ys, form, color=colour, markersize=5, linewidth=1.2, zorder=3)
    axes.hlines(ys, *np.transpose(list(map(_interval, rows))), color=colour, **BAR)
    scores = [
        (max(0.0, compared.full + compared.delta_low), compared.full + compared.delta_high)
        if (compared := row.vs_baseline.get(metric))
        else (row.value(metric),) * 2
        for row in rows
    ]
    axes.vlines(xs, *np.transpose(scores), color=colour, **BAR)
    return drawn


def _targets(groups: Sequence[Group]) -> Drawn | None:
    timed = [[row for row in group.done if row.measured_speedup] for group in groups]
    asked = [[row for row in rows if row.target_speedup and not row.keeps_all] for rows in timed]
    figure, shown = _panel_per_group(list(zip(groups, asked, strict=True)))
    if figure is None:
        return None
    handles: Handles = {}
    for axes, _, rows in shown:
        drawn = _draw_measured(axes, rows, "target_speedup", lambda row: row.label, strategy_colour)
        handles = drawn | handles
        targets = sorted({row.target_speedup or 1.0 for row in rows})
        axes.set_xticks(targets, [f"{target:g}x" for target in targets])
        axes.set_xlabel("target speedup")
    legend_below(figure, handles)
    return f"Measured decode speedup against the target. {BARS}", figure


def _draw_measured(
    axes: "Axes",
    rows: Sequence[Record],
    key: str,
    name_of: Callable[[Record], str],
    colour_of: Callable[[str], str],
) -> Handles:
    """Draw measured speedups with intervals against another speedup: a colour for each name and a
    marker for each batch size, side by side.
    """
    series = sorted(collected(rows, lambda row: (name_of(row), row.batch_size)).items())
    batches = sorted({batch for (_, batch), _ in series})
    markers = dict(zip(batches, cycle(MARKERS), strict=False))
    xs = sorted({row.value(key) for row in rows})
    gaps = (b - a for a, b in pairwise(sorted({round(x, 1) for x in xs})))
    width = 0.5 * min(gaps, default=0.5)
    speedups = [(row.measured_speedup, row.predicted_speedup) for row in rows]
    values = [value for pair in speedups for value in pair if value]
    limit_to(axes, [(min(1.0, xs[0]), min(1.0, *values)), (xs[-1] + 0.1, max(values))])
    handles: Handles = {}
    ticks: list[Line2D] = []
    for i, ((name, batch), same) in enumerate(series):
        at = [row.value(key) + width * ((i + 0.5) / len(series) - 0.5) for row in same]
        colour = colour_of(name)
        measured = [row.measured_speedup or 1.0 for row in same]
        axes.plot(at, measured, markers[batch], color=colour, markersize=4)
        axes.vlines(at, *np.transpose(list(map(_interval, same))), color=colour, **BAR)
        handles.setdefault(name, axes.plot([], [], "s", markersize=6, color=colour)[0])
        predicted = [row.predicted_speedup or np.nan for row in same]
        if key != "predicted_speedup":
            ticks = axes.plot(at, predicted, "_", color=INK, zorder=4)
    for batch in batches if len(batches) > 1 else ():
        (handles[f"batch {batch}"],) = axes.plot([], [], markers[batch], markersize=4, color=INK)
    if ticks:
        handles["predicted"] = ticks[0]
    (line,) = axes.plot([1, xs[-1]], [1, xs[-1]], color=FAINT, linestyle="--", linewidth=1)
    axes.set_ylabel("measured decode speedup")
    return handles | {f"measured = {key.partition('_')[0]}": line}


def _exits(groups: Sequence[Group]) -> Drawn | None:
    rows = [(group, row) for group in groups for row in group.done if row.exit_depths][:MAX_EXITS]
    if not rows:
        return None
    figure, each = panels(len(rows), 2.3, 2.4, columns=3)
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
    schedules: dict[tuple[str, int | None, tuple[int, ...]], Record] = {}
    for group in groups:
        for row in sorted(group.done, key=lambda row: (row.target_speedup or 0, row.strategy)):
            if row.kept_layers:
                schedule = group.called(row), row.num_layers, row.kept_layers
                schedules.setdefault(schedule, row)
    shown = [(name, row) for (name, *_), row in schedules.items()][:MAX_SCHEDULES]
    if not shown:
        return None
    depths = {row.num_layers or 0 for _, row in shown}
    names = [f"{name} of {row.num_layers}" if len(depths) > 1 else name for name, row in shown]
    figure, (axes,) = panels(1, 6.6, 0.7 + 0.24 * len(shown))
    for y, (_, row) in enumerate(shown):
        depth = row.num_layers or 0
        fills: list[tuple[str, float]] = [(FAINT, 0.18)] * depth
        for layer in row.kept_layers or ():
            fills[layer] = strategy_colour(row.strategy), 1.0 if layer in row.last_stage else 0.45
        bars = [(layer - 0.43, 0.86) for layer in range(depth)]
        axes.broken_barh(bars, (y - 0.36, 0.72), facecolors=fills)
    axes.set_yticks(range(len(names)), [shortened(name, MAX_NAME) for name in names])
    axes.set(ylim=(len(names) - 0.4, -0.6), xlim=(-0.6, max(depths) - 0.4), xlabel="layer")
    axes.grid(visible=False)
    axes.spines[["left", "bottom"]].set_visible(False)
    paler = any(len(row.last_stage) < len(row.kept_layers or ()) for _, row in shown)
    caption = f"Kept layers of each schedule{'; pale layers do not run for every token' * paler}."
    return caption, figure


def strategy_colour(strategy: str) -> str:
    """Return the colour of a strategy, the same in every plot; the name of a strategy without an
    entry in COLOURS decides its hue.
    """
    number = zlib.crc32(strategy.encode())
    hue, shade = number % 4093 / 4093, number % 31 / 31
    levels = colorsys.hls_to_rgb(hue, 0.35 + 0.25 * shade, 0.5)
    return COLOURS.get(strategy, "#" + "".join(f"{round(255 * level):02x}" for level in levels))


def applied() -> AbstractContextManager[None]:
    """Apply the style of all plots within a `with` block."""
    import matplotlib

    return matplotlib.rc_context(_STYLE)


def save_figure(figure: "Figure", path: Path) -> list[Path]:
    """Write a figure as PNG on white and as transparent SVG, each atomically; `path` has no
    suffix.
    """
    png, svg = io.BytesIO(), io.BytesIO()
    figure.savefig(png, format="png", dpi=150, pil_kwargs={"compress_level": 3})
    figure.set_layout_engine("none")  # the layout is computed once for both files
    figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None})
    files = [path.with_suffix(".png"), path.with_suffix(".svg")]
    for file, stream in zip(files, (png, svg), strict=True):
        write_atomic(file, stream.getvalue())
    return files


def panels(
    count: int, width: float, height: float, columns: int = 2, **options: Any
) -> "tuple[Figure, list[Axes]]":
    """Return a figure and its axes; each panel has the given size in inches."""
    from matplotlib.figure import Figure

    across = min(count, columns)
    down = -(-count // across)
    figure = Figure(figsize=(width * across, height * down), layout="constrained")
    axes = list(figure.subplots(down, across, squeeze=False, **options).flat)
    for spare in axes[count:]:
        spare.set_visible(False)
    return figure, axes[:count]


def legend_below(figure: "Figure", handles: "Mapping[str, Artist]") -> None:
    """Add one legend below all panels; `handles` maps labels to plotted artists."""
    if handles:
        letters = 5 + max(map(len, handles))  # of a label with its mark
        fitting = max(1, int(figure.get_figwidth() * LETTERS_PER_INCH / letters))
        columns = -(-len(handles) // -(-len(handles) // fitting))  # rows of equal length
        figure.legend(
            list(handles.values()),
            list(handles),
            loc="outside lower center",
            ncols=columns,
            handlelength=1.6,
        )


def limit_to(axes: "Axes", points: Sequence[tuple[float, float]]) -> None:
    """Set the limits of both axes from the points only, so that one wide interval does not crush
    the plot.
    """
    axes.update_datalim(points)
    axes.margins(0.1)
    axes.autoscale_view()
    axes.autoscale(enable=False)


def annotate(
    axes: "Axes", text: str, point: tuple[float, float], offset: tuple[float, float], **look: Any
) -> None:
    """Write a small text beside a point; `offset` is in typographic points."""
    look = {"textcoords": "offset points", "color": INK, "fontsize": 8, **look}
    axes.annotate(text, point, xytext=offset, **look)
