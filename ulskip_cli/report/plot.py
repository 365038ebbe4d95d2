"""Pictures of rows and trainings, for those who would rather look than read."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ulskip_cli.experiments.record import Row
from ulskip_cli.report import drawing
from ulskip_cli.report.gate import METRICS, primary
from ulskip_cli.report.training import curve_label

SIDE_STEP = 0.015  # of the axis


def quality_against_speedup(rows: Sequence[Row], path: Path, title: str = "") -> list[Path]:
    """Draw one line a strategy over measured speedup, predicted where nothing was measured; PNG and SVG.

    Args:
        rows: of one model, task and batch size; the bars are the intervals of the rows.
        path: of the files, without suffix.
        title: above the axes.

    Returns:
        The files; none where the rows have no quality.
    """
    metric = primary(rows)
    if metric is None or metric == "decode_loss":
        return []
    rows = [row for row in rows if row.get(metric) is not None]
    with drawing.style():
        return drawing.saved(_quality(rows, metric, title), path)


def _quality(rows: Sequence[Row], metric: str, title: str) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for row in rows:
        if row["strategy"] == "full":
            axes.axhline(row[metric], color=drawing.FAINT, linestyle="--", linewidth=1)
            axes.annotate("full", (1.0, row[metric]), xytext=(0, 4), textcoords="offset points", color=drawing.FAINT)
    measured = any(row.get("measured_speedup") is not None for row in rows)
    for strategy in dict.fromkeys(row["strategy"] for row in rows if row["strategy"] != "full"):
        points = sorted((row for row in rows if row["strategy"] == strategy), key=lambda row: row["layer_ratio"])
        speedups = [_speedup(row) for row in points]
        values = [row[metric] for row in points]
        colour = drawing.colour(strategy)
        axes.plot(speedups, values, marker="o", label=strategy, color=colour)
        for row, speedup, value in zip(points, speedups, values, strict=True):
            label = f"{row['target_speedup']:g}x" if row["target_speedup"] else f"{len(row['kept_layers'])} layers"
            axes.annotate(label, (speedup, value), xytext=(5, 5), textcoords="offset points", fontsize=8)
            if row.get("measured_speedup_low") is not None:
                axes.hlines(value, row["measured_speedup_low"], row["measured_speedup_high"], color=colour, linewidth=1)
            interval = row.get("against_full", {}).get(metric)
            if interval:
                ends = (interval["full"] + interval["delta_low"], interval["full"] + interval["delta_high"])
                axes.vlines(speedup, *ends, color=colour, linewidth=1)
    axes.set_xlabel(f"{'measured' if measured else 'predicted'} decode speedup")
    axes.set_ylabel(METRICS[metric])
    axes.set_title(title)
    low, high = axes.get_ylim()
    axes.set_ylim(bottom=max(low, -0.03 * high))  # an interval may reach below zero, a score does not
    if axes.get_legend_handles_labels()[0]:
        axes.legend()
    return figure


def measured_against_predicted(rows: Sequence[Row], path: Path, labels: Sequence[str], title: str = "") -> list[Path]:
    """Draw the clock against the cost model, one marker a batch size and one colour a label; PNG and SVG.

    Series that share a prediction stand side by side.

    Args:
        rows: with a measured speedup; the bars are its intervals.
        path: of the files, without suffix.
        labels: what each row was decoded by.
        title: above the axes.

    Returns:
        The files; none where no speedup is predicted.
    """
    drawn = [(row, label) for row, label in zip(rows, labels, strict=True) if row.get("predicted_speedup") is not None]
    if not drawn:
        return []
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.8), layout="constrained")
    axes = figure.subplots()
    batches = sorted({row["batch_size"] for row, _ in drawn})
    colours = {label: f"C{i}" for i, label in enumerate(dict.fromkeys(label for _, label in drawn))}
    highest = max(max(row["predicted_speedup"], row["measured_speedup_high"]) for row, _ in drawn)
    series = sorted({(row["batch_size"], label) for row, label in drawn})
    for i, (batch, label) in enumerate(series):
        points = [row for row, own in drawn if (row["batch_size"], own) == (batch, label)]
        aside = (i - (len(series) - 1) / 2) * SIDE_STEP * (highest - 1)
        predicted = [row["predicted_speedup"] + aside for row in points]
        measured = [row["measured_speedup"] for row in points]
        below = [row["measured_speedup"] - row["measured_speedup_low"] for row in points]
        above = [row["measured_speedup_high"] - row["measured_speedup"] for row in points]
        look: dict[str, Any] = {
            "fmt": drawing.MARKERS[batches.index(batch) % len(drawing.MARKERS)],
            "color": colours[label],
            "capsize": 2,
        }
        axes.errorbar(predicted, measured, yerr=[below, above], label=f"{label}, batch {batch}", **look)
    axes.plot([1, highest], [1, highest], color="grey", linestyle="--", linewidth=1)
    axes.set_xlabel("predicted decode speedup, by bytes of weights")
    axes.set_ylabel("measured decode speedup")
    axes.set_title(title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    return drawing.saved(figure, path)


def learning_curve(record: Row, path: Path) -> list[Path]:
    """Draw the validation loss of a training over its steps, one line a target ratio or depth; PNG and SVG.

    Args:
        record: of a training, as in training.json.
        path: of the files, without suffix.

    Returns:
        The files; none where there are fewer than two points.
    """
    curve = record["learning_curve"]
    if len(curve) < 2:
        return []
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for key in dict.fromkeys(key for point in curve for key in point["validation_loss"]):
        points = [(point["step"], point["validation_loss"][key]) for point in curve if key in point["validation_loss"]]
        axes.plot(*zip(*points, strict=True), marker=".", label=curve_label(key))
    axes.set_xlabel("step")
    axes.set_ylabel("validation loss, nats a token")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return drawing.saved(figure, path)


def _speedup(row: Row) -> float:
    return float(row.get("measured_speedup") or row.get("predicted_speedup") or row["layer_ratio"])
