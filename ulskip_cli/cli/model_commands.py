"""The commands that write a model: `ulskip train` and `ulskip export`."""

import os
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from ulskip_cli.cli.plan_command import gigabytes
from ulskip_cli.cli.shared import (
    PATH,
    ConfigDir,
    Json,
    Overrides,
    PrintConfig,
    print_json,
    print_yaml,
)
from ulskip_cli.core.errors import UsageError, require_choice
from ulskip_cli.core.files import JsonObject, check_writable, user_path
from ulskip_cli.core.progress import ProgressCallback


def train(
    overrides: Overrides,
    config_dir: ConfigDir = None,
    as_json: Json = False,
    print_config: PrintConfig = False,
) -> None:
    """Fine-tune a model with layer skipping, e.g. train.ratios=[1,2] output=runs/mine.

    After an interruption, the same command continues from the last checkpoint.
    """
    from ulskip_cli.core import config
    from ulskip_cli.training.preflight import check_trainable

    chosen = config.compose_training(overrides)
    if print_config:
        print_yaml(chosen)
        return
    check_trainable(chosen)
    output = user_path(chosen.output, "output")
    check_writable(output, "output")
    from ulskip_cli.cli.progress_bars import ProgressBars

    speaks = os.environ.get("RANK", "0") == "0"  # one of torchrun's processes, for all
    bars = ProgressBars(chosen.model.label) if speaks else nullcontext(ProgressCallback())
    with bars as progress:
        from ulskip_cli.training.training_run import run_training

        record = run_training(chosen, progress).plain()
    if not speaks:
        return
    if as_json:
        print_json(record)
        return
    for line in training_lines(record, output):
        print(line)


def training_lines(record: JsonObject, output: Path) -> list[str]:
    """Return the lines that summarize a training; `record` has the keys of `TrainingRecord`
    (training/training_run.py).
    """
    since = " since the run resumed" if record["resumed"] else ""
    lines = [
        f"{record['steps']} steps of {record['strategy']} on {record['examples']} examples,"
        f" {record['seconds']:.0f} s{since}, {gigabytes(record['peak_memory_bytes'])} of memory"
    ]
    if record["train_loss"] is not None:
        lines.append(f"training loss of the last steps: {record['train_loss']:.3f}")
    if record["left_out"]:
        lines.append(
            f"{record['left_out']} examples were skipped: longer than train.max_length; raise it to"
            " keep them"
        )
    if record["learning_curve"]:
        losses = []
        for name, loss in record["learning_curve"][-1]["validation_loss"].items():
            is_target = name.endswith("x")  # such as 2x, or else the depth of an exit
            losses.append(f"{loss:.3f} at {name if is_target else f'{name} layers'}")
        lines.append(f"validation loss: {', '.join(losses)}")
    warnings = [f"warning: {text}" for text in record["warnings"]]
    return [*lines, f"written to {output}/", *warnings]


def export(
    overrides: Overrides,
    to: Annotated[
        Path | None,
        typer.Option(
            **PATH,
            help="Folder to write, or file for --format gguf and schedule.",
            show_default=False,
        ),
    ] = None,
    config_dir: ConfigDir = None,
    as_format: Annotated[str, typer.Option("--format", help="hf, gguf or schedule.")] = "hf",
    check: Annotated[
        bool | None,
        typer.Option(
            "--check/--no-check",
            help=(
                "Compare the export's logits with the view's; --no-check: do not. Default: if both"
                " fit into memory."
            ),
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
    print_config: PrintConfig = False,
) -> None:
    """Write the kept layers as a checkpoint that needs only transformers, e.g. ratio=2
    prompt_layers=kept --to DIR.
    """
    from ulskip_cli.core.config import compose
    from ulskip_cli.export import export_run

    require_choice("--format", as_format, export_run.FORMATS)
    chosen = compose(overrides, f"export --format {as_format}")
    if print_config:
        print_yaml(chosen)
        return
    if to is None:
        raise UsageError(
            "expected --to with the folder or file to write, got none; e.g. --to runs/half"
        )
    from ulskip_cli.cli.progress_bars import ProgressBars

    request = export_run.ExportRequest(to, as_format, check)
    # A schedule loads no model.
    with ProgressBars(chosen.model.label if as_format != "schedule" else "") as bars:
        record = export_run.run_export(chosen, request, bars)
    if as_json:
        print_json(record)
    else:
        print("\n".join(export_run.summary(record)))
