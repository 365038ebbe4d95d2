"""`ulskip export`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from ulskip_cli.cli.options import ConfigDir, Json, Overrides


def export(
    to: Annotated[Path, typer.Option(help="The folder to write, or for formats of one file the file.", show_default=False)],
    overrides: Overrides = None,
    config_dir: ConfigDir = None,
    as_format: Annotated[str, typer.Option("--format", help="hf, gguf, mergekit or schedule.")] = "hf",
    results: Annotated[Path | None, typer.Option(help="Where measured rows for the card are; default: results_dir.")] = None,
    shard_size: Annotated[str, typer.Option(help="The most of one weights file.")] = "5GB",
    check: Annotated[
        bool | None,
        typer.Option(
            "--check/--no-check", help="Compare with the view; default: where both fit into memory.", show_default=False
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write the kept layers as a checkpoint that transformers loads alone, e.g. ratio=2 prompt_layers=kept --to DIR."""
    from ulskip_cli.cli.progress_bars import ProgressBars
    from ulskip_cli.export import run
    from ulskip_cli.export.request import ExportRequest

    request = ExportRequest(to.expanduser(), as_format, results, shard_size, check)
    with ProgressBars() as bars:
        record = run.export(overrides or [], config_dir, request, bars)
    print(json.dumps(record, ensure_ascii=False) if as_json else "\n".join(run.summary(record)))
