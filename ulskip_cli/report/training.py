"""The summary of a training run."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from ulskip_cli.experiments.record import Row


def training_lines(record: Row, output: Path, overrides: Sequence[str] = ()) -> list[str]:
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
    command = shlex.join(["ulskip", "run", *next_overrides(record, output, overrides)])
    return [*lines, f"written to {output}/; next: {command}"]


def next_overrides(record: Row, output: Path, overrides: Sequence[str]) -> list[str]:
    """Return the overrides with which `ulskip run` uses a trained model or skip adapter: the task,
    layers and number of examples of the training, and its first ratio.
    """
    is_adapter = record.get("config", {}).get("train", {}).get("method") == "adapter"
    result = [] if is_adapter else [f"model.path={output}"]
    groups = ["task", "strategy", "limit", *(["model"] if is_adapter else [])]
    result += [text for text in overrides if text.partition("=")[0].partition(".")[0] in groups]
    ratios = [ratio for ratio in record.get("ratios", ()) if ratio != 1]
    result += [f"ratio={ratio:g}" for ratio in ratios[:1]]
    return [*result, "correction=adapter", f"correction.path={output}"] if is_adapter else result


def curve_label(key: str) -> str:
    """Return the label of one line of a learning curve.

    The key of a schedule is its target ratio. The key of an exit is its depth; older records use
    depths for all lines.

    >>> curve_label("2x"), curve_label("6")
    ('2x', '6 layers')
    """
    return key if key.endswith("x") else f"{key} layers"
