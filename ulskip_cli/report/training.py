"""The summary of a training run."""

import json
import shlex
from pathlib import Path

from ulskip_cli.experiments.record import Row


def training_lines(record: Row, output: Path) -> list[str]:
    """Return the lines of the summary: steps, losses, and the command to run next."""
    since = " since the run resumed" if record["resumed"] else ""
    lines = [
        f"{record['steps']} steps of {record['strategy']} on {record['examples']} examples,"
        f" {record['seconds']:.0f} s{since}"
    ]
    if record["train_loss"] is not None:
        lines.append(f"training loss of the last steps: {record['train_loss']:.3f}")
    if record["left_out"]:
        lines.append(
            f"{record['left_out']} examples were skipped: longer than train.max_length; raise it to"
            " keep them"
        )
    if record["learning_curve"]:
        losses = record["learning_curve"][-1]["validation_loss"]
        shown = ", ".join(f"{loss:.3f} at {curve_label(key)}" for key, loss in losses.items())
        lines.append(f"validation loss: {shown}")
    return [
        *lines,
        (
            f"written to {output}/; next:"
            f" {shlex.join(['ulskip', 'run', *next_overrides(record, output)])}"
        ),
    ]


def next_overrides(record: Row, output: Path) -> list[str]:
    """Return the overrides with which `ulskip run` uses a trained model or skip adapter."""
    config = record.get("config", {})
    if config.get("train", {}).get("method") != "adapter":
        return [f"model.path={output}"]
    model, strategy, ratio = config["model"], record["strategy"], record["ratios"][0]
    layers = json.dumps(record["kept_layers"][f"{ratio:g}"], separators=(",", ":"))
    fixed = [f"strategy.layers={layers}"] if strategy in ("custom", "search") else []
    named = f"model.path={model['path']}" if model["source"] == "hf" else f"model={model['name']}"
    return [
        named,
        "correction=adapter",
        f"correction.path={output}",
        f"strategy={strategy}",
        *fixed,
        f"ratio={ratio:g}",
    ]


def curve_label(key: str) -> str:
    """Return the label of one line of a learning curve.

    The key of a schedule is its target ratio. The key of an exit is its depth; older records use
    depths for all lines.

    >>> curve_label("2x"), curve_label("6")
    ('2x', '6 layers')
    """
    return key if key.endswith("x") else f"{key} layers"
