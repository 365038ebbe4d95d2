"""The command `ulskip export`."""

from pathlib import Path
from typing import Annotated

import typer

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
    from ulskip_cli.export import run

    require_choice("--format", as_format, run.FORMATS)
    chosen = compose(overrides, f"export --format {as_format}")
    if print_config:
        print_yaml(chosen)
        return
    if to is None:
        raise UsageError(
            "expected --to with the folder or file to write, got none; e.g. --to runs/half"
        )
    from ulskip_cli.cli.progress_bars import ProgressBars

    request = run.ExportRequest(to, as_format, check)
    with ProgressBars(chosen.model.label if as_format != "schedule" else "") as bars:
        record = run.run_export(chosen, request, bars)
    if as_json:
        print_json(record)
    else:
        print("\n".join(run.summary(record)))
