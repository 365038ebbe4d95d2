"""Results of a command on the terminal: one JSON object, or tables, warnings and summaries."""

import json
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ulskip_cli.core.files import printable

if TYPE_CHECKING:
    from rich.console import Console

    from ulskip_cli.core.config_schema import Config, TrainingConfig
    from ulskip_cli.experiments.record import Record, Row
    from ulskip_cli.experiments.results import ResultsFolder
    from ulskip_cli.experiments.sweep.jobs import SweepOutcome
    from ulskip_cli.report.tables import TableSection

PIPE_COLUMNS = 120  # of tables that go into a file or a pipe


def make_console(pipe_columns: int = PIPE_COLUMNS) -> "Console":
    """Return a console for standard output: texts are shown as they are, and long lines are not
    wrapped.
    """
    from rich.console import Console

    width = None if sys.stdout.isatty() else pipe_columns
    return Console(width=width, markup=False, emoji=False, highlight=False, soft_wrap=True)


def print_json(value: object) -> None:
    """Print a JSON value on one line."""
    print(json.dumps(value, ensure_ascii=False))


def print_rows(rows: Sequence["Row"]) -> None:
    """Print one row as a JSON object, and several as an object with the key `rows`."""
    print_json(rows[0] if len(rows) == 1 else {"rows": rows})


def print_yaml(*configs: "Config | TrainingConfig") -> None:
    """Print a configuration as YAML; for several points, print the first and the number of
    points.
    """
    from ulskip_cli.core.config import to_yaml

    if len(configs) > 1:
        print(
            f"# The first of {len(configs)} points; `ulskip sweep --dry-run` lists the points of a"
            " sweep."
        )
    print(to_yaml(configs[0]), end="")


def show_outcome(
    outcome: "SweepOutcome",
    folder: "ResultsFolder",
    make_table: Callable[["Sequence[Record]"], "TableSection"],
    sentences: Callable[["Sequence[Record]"], "Sequence[str]"],
    as_json: bool,
    file: str = "table.md",
) -> None:
    """Print a JSON object, or else sentences, a table and warnings, and raise RunError if a point
    failed.

    `file` has the columns that do not fit a terminal.
    """
    from ulskip_cli.report.rows import warnings
    from ulskip_cli.report.tables import draw

    records = list(outcome.records.values())
    if as_json:
        print_json(outcome.as_json())
    elif records:
        console = make_console()
        for sentence in sentences(records):
            console.print(printable(sentence), style="bold")
        console.print(draw(make_table(records), console.width, file), soft_wrap=False)
        for warning in warnings(records):
            console.print(f"warning: {printable(warning)}", style="yellow", soft_wrap=False)
        written = f"written to {folder.path}/"
        if any(record.num_examples for record in records):
            written += f"; answers: ulskip report {shlex.quote(str(folder.path))} --html"
        console.print(written)
    outcome.check()


def training_lines(record: "Row", output: Path, config: "TrainingConfig") -> list[str]:
    """Return the lines of the summary: steps, losses, and the command to run next."""
    from ulskip_cli.report.plots import curve_label

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
    if record["warnings"]:
        return [
            *lines,
            f"written to {output}/",
            *(f"warning: {text}" for text in record["warnings"]),
        ]
    from ulskip_cli.core.command_line import command_line

    return [*lines, f"written to {output}/; next: {command_line(next_config(config), 'run')}"]


def next_config(training: "TrainingConfig") -> "Config":
    """Return the configuration that runs a trained model or skip adapter: the task, layers and
    number of examples of the training, and its first ratio.
    """
    from ulskip_cli.core.config import compose, preset
    from ulskip_cli.core.config_schema import ModelConfig

    kept = {key: getattr(training, key) for key in ("task", "strategy", "limit", "prompt_layers")}
    ratio = next((ratio for ratio in training.train.ratios if ratio != 1), 1.0)
    config = compose([])
    decoding = config.decoding.replace(max_new_tokens=training.task.max_new_tokens)
    config = config.replace(**kept, ratio=ratio, decoding=decoding)
    if training.train.method == "adapter":
        adapter = preset("correction", "adapter", {"path": [training.output]})
        return config.replace(model=training.model, correction=adapter)
    return config.replace(model=ModelConfig(name="hf", source="hf", path=training.output))
