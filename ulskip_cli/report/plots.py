"""The plot of a report, quality against speed, and the style of all plots."""

import colorsys
import io
import zlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ulskip_cli.core.files import write_atomic
from ulskip_cli.experiments.intervals import Interval
from ulskip_cli.experiments.record import Record
from ulskip_cli.experiments.statistics import GATE, TITLES, may_gain, primary
from ulskip_cli.report.rows import Group, collected
from ulskip_cli.report.tables import shortened
from ulskip_cli.tasks.metrics import DECODE_LOSS

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STYLE = Path(__file__).parent.parent / "assets" / "plots.mplstyle"
FAINT = "#8a97a5"  # of reference lines; the style has the other colours
# Colours that colour-blind readers can tell apart (Okabe and Ito).
COLOURS = {
    "full": "#7f8b97",
    "unified": "#0a7bc2",
    "top_skip": "#e69f00",
    "bottom_skip": "#009e73",
    "early_exit": "#d55e00",
    "skip_decode": "#cc79a7",
    "block_influence": "#7b61c9",
    "lorp": "#56b4e9",
    "one_block": "#b0466f",
    "search": "#3d9ca8",
    "custom": "#8c6d46",
}
BAR: Any = {"linewidth": 1.1, "alpha": 0.8}  # look of an interval
MAX_LABELS = 30
MAX_TITLE = 72  # characters
CAPTION = (
    "Quality against decode speedup. Bars are confidence intervals; long ones go beyond the plot."
    " Labels are targets, not measured speedups. A white centre marks a point without a measurable"
    " gain: the interval of its speedup includes 1x. The grey band is the Pareto front of the"
    " others: no point beats it in both."
)


def save_quality(groups: Sequence[Group], path: Path, gate: float = GATE) -> list[Path]:
    """Plot quality against measured speedup (predicted, if none was measured), with a line at
    `gate`, a share of the full model's quality. Without quality no file is written.
    """
    with applied():
        figure = _quality(groups, gate)
        return save_figure(figure, path) if figure else []


def pareto_front(
    points: Sequence[tuple[float, float]], lower_is_better: bool = False
) -> list[tuple[float, float]]:
    """Return the (speed, quality) points that no other beats in both, slowest first."""
    sign = -1 if lower_is_better else 1

    def is_beaten(point: tuple[float, float]) -> bool:
        speed, value = point
        return any(
            rival != point and rival[0] >= speed and sign * rival[1] >= sign * value
            for rival in points
        )

    return sorted({point for point in points if not is_beaten(point)})


def _draw_front(axes: "Axes", front: Sequence[tuple[float, float]]) -> "Artist":
    xs, ys = zip(*front, strict=True)
    (band,) = axes.plot(xs, ys, color=FAINT, linewidth=6, alpha=0.3, zorder=1)
    band.set_solid_capstyle("round")
    return band


def _quality(groups: Sequence[Group], gate: float) -> "Figure | None":
    """Draw the group with the most rows; return None without quality."""
    from matplotlib.figure import Figure

    scored = [(group, _scored(group)) for group in groups]
    group, rows = max(scored, key=lambda pair: len(pair[1]), default=(None, []))
    if not rows or group is None:
        return None
    figure = Figure(figsize=(6.6, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.set_title(shortened(group.label, MAX_TITLE))
    handles = _draw_rows(axes, rows, str(primary(group.records)), gate)
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=3, handlelength=1.6)
    return figure


def _draw_rows(
    axes: "Axes", rows: Sequence[Record], metric: str, gate: float
) -> dict[str, "Artist"]:
    """Draw rows, the full model with the quality gate, and the Pareto front; return the entries of
    the legend by label.
    """
    points = [_at(row, metric) for row in rows]
    gains = [_at(row, metric) for row in rows if may_gain(row)]
    compared = rows[0].vs_baseline.get(metric)
    if compared:
        full, at_gate = (1.0, compared.full), (1.0, gate * compared.full)
        _draw_full(axes, compared.full, gate)
        points += [full, at_gate]
        gains.append(full)
    _limit_to(axes, points)
    handles = dict[str, "Artist"]()
    front = pareto_front(gains, lower_is_better=metric == DECODE_LOSS.key)
    if len(front) > 1:
        handles["Pareto front"] = _draw_front(axes, front)
    for label, same in collected(rows, lambda row: row.label).items():
        handles[label] = _draw_strategy(axes, sorted(same, key=_speedup), metric)
    if len(rows) <= MAX_LABELS:
        for row in rows:
            target, count = row.target_speedup, len(row.kept_layers or ())
            annotate(axes, f"{target:g}" if target else f"{count} layers", _at(row, metric), (5, 5))
    kind = "predicted" if rows[0].measured_speedup is None else "measured"
    axes.set(
        xlabel=f"{kind} decode speedup at batch size {rows[0].batch_size} (numbers: ratio)",
        ylabel=TITLES[metric],
    )
    return handles


def _speedup(row: Record) -> float:
    """Return the measured speedup, or the best estimate of it."""
    return row.measured_speedup or row.predicted_speedup or row.layer_ratio or 1.0


def _at(row: Record, metric: str) -> tuple[float, float]:
    """Return the point (speed, quality) of a row."""
    return _speedup(row), row.value(metric)


def _scored(group: Group) -> list[Record]:
    """Select rows with quality at the smallest batch size, whose speed and quality belong together;
    if any has a measured speedup, only such rows.
    """
    metric = primary(group.records)
    rows = [row for row in group.done if not (row.keeps_all or row.has_two_depths)]
    rows = [row for row in rows if row.value(metric or "") is not None]
    rows = [row for row in rows if row.measured_speedup is not None] or rows
    smallest = min((row.batch_size for row in rows), default=None)
    return [row for row in rows if row.batch_size == smallest]


def _draw_full(axes: "Axes", value: float, gate: float) -> None:
    """Draw the full model, at speedup 1 and the score `value`, and the quality gate."""
    colour = strategy_colour("full")
    axes.axhline(value, color=colour, linestyle="--", linewidth=1)
    axes.plot([1], [value], marker="D", color=colour, markersize=5)
    annotate(axes, "full", (1, value), (4, 4))
    axes.axhline(gate * value, color=colour, linestyle=":", linewidth=1)
    left = {"xycoords": axes.get_yaxis_transform(), "va": "top"}
    annotate(axes, f"quality gate: {gate:.0%} of full", (0, gate * value), (3, -3), **left)


def _draw_strategy(axes: "Axes", rows: Sequence[Record], metric: str) -> "Artist":
    """Draw one strategy's points, joined by a line if every target occurs once."""
    colour, targets = strategy_colour(rows[0].label), {row.target_speedup for row in rows}
    is_joined = len(rows) <= MAX_LABELS and len(targets) == len(rows)
    form = "o-" if is_joined else "o"
    speeds, scores = zip(*(_at(row, metric) for row in rows), strict=True)
    (drawn,) = axes.plot(speeds, scores, form, color=colour, markersize=5, linewidth=1.2, zorder=3)
    unsure = [_at(row, metric) for row in rows if not may_gain(row)]
    if unsure:
        axes.plot(*zip(*unsure, strict=True), "o", color="white", markersize=2.5, zorder=4)
    axes.hlines(scores, *zip(*map(_speed_ends, rows), strict=True), color=colour, **BAR)
    score_ends = [_score_ends(row, metric) for row in rows]
    axes.vlines(speeds, *zip(*score_ends, strict=True), color=colour, **BAR)
    return drawn


def _speed_ends(row: Record) -> tuple[float, float]:
    """Return the ends of the speedup's interval, or the speedup twice; 1 if it was not measured."""
    speedup = row.speedup or Interval(1.0)
    return speedup.low or speedup.value, speedup.high or speedup.value


def _score_ends(row: Record, metric: str) -> tuple[float, float]:
    """Return the ends of the score's interval, or the score twice."""
    compared = row.vs_baseline.get(metric)
    if compared is None:
        return row.value(metric), row.value(metric)
    return max(0.0, compared.full + compared.delta_low), compared.full + compared.delta_high


def strategy_colour(strategy: str) -> str:
    """Return the colour of a strategy in all plots, made from its name unless COLOURS has one."""
    number = zlib.crc32(strategy.encode())
    hue, shade = number % 4093 / 4093, number % 31 / 31
    levels = colorsys.hls_to_rgb(hue, 0.35 + 0.25 * shade, 0.5)
    return COLOURS.get(strategy, "#" + "".join(f"{round(255 * level):02x}" for level in levels))


def applied() -> AbstractContextManager[None]:
    """Apply the style of all plots within a `with` block."""
    import matplotlib.style

    return matplotlib.style.context(STYLE)


def save_figure(figure: "Figure", path: Path) -> list[Path]:
    """Write a figure as PNG on white and as transparent SVG."""
    files = []
    looks: dict[str, Any] = {
        "png": {"dpi": 150, "pil_kwargs": {"compress_level": 3}},
        "svg": {"transparent": True, "metadata": {"Date": None}},
    }
    for form, look in looks.items():
        stream = io.BytesIO()
        figure.savefig(stream, format=form, **look)
        figure.set_layout_engine("none")  # the layout is computed once for both files
        files.append(path.with_name(f"{path.name}.{form}"))
        write_atomic(files[-1], stream.getvalue())
    return files


def _limit_to(axes: "Axes", points: Sequence[tuple[float, float]]) -> None:
    """Set the limits of both axes from the points, so that a wide interval does not crush
    the plot.
    """
    axes.update_datalim(points)
    axes.margins(0.1)
    axes.autoscale_view()
    axes.autoscale(enable=False)
    low, high = axes.get_ylim()
    axes.set_ylim(bottom=max(low, -0.02 * high))


def annotate(
    axes: "Axes", text: str, point: tuple[float, float], offset: tuple[float, float], **look: Any
) -> None:
    """Write a small text beside a point; `offset` is in typographic points."""
    look = {"textcoords": "offset points", "fontsize": 8, **look}
    axes.annotate(text, point, xytext=offset, **look)
