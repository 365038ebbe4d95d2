"""The command `ulskip report`."""

from pathlib import Path
from typing import Annotated

import typer

from ulskip_cli.cli.options import PATH, Json


def report(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(
            **PATH,
            help="Results folders. Default: all under --results-dir.",
            show_default=False,
        ),
    ] = None,
    compare: Annotated[
        str | None, typer.Option(help="`paper`, or a results folder to compare with.")
    ] = None,
    html: Annotated[
        bool, typer.Option("--html", help="Also write report.html, a page that needs no network.")
    ] = False,
    form: Annotated[
        str,
        typer.Option(
            "--format", help="terminal, or markdown, csv or latex: print and write no files."
        ),
    ] = "terminal",
    layout: Annotated[
        str | None,
        typer.Option(
            help="Layout: table4 (one line per target and approach) or long (one per point)."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(**PATH, help="Folder for the files. Default: report/ in the results folder."),
    ] = None,
    plots: Annotated[bool, typer.Option(help="Draw the plots.")] = True,
    gate: Annotated[
        float,
        typer.Option(help="Quality gate: share of the full model's quality that a winner keeps."),
    ] = 0.9,
    tolerance: Annotated[
        float,
        typer.Option(help="Relative difference allowed between two measurements of a speedup."),
    ] = 0.15,
    examples: Annotated[
        int, typer.Option(help="Number of examples per data set on the page.")
    ] = 200,
    results_dir: Annotated[
        Path, typer.Option(**PATH, help="Folder that holds the results folders.")
    ] = Path("results"),
    as_json: Json = False,
) -> None:
    """Write tables, plots and a page from stored rows; `--compare A B` compares folder B with A."""
    from ulskip_cli.report import build

    build.run(
        build.Options(
            folders or (),
            compare,
            form,
            layout,
            output,
            html,
            plots,
            gate,
            tolerance,
            examples,
            as_json,
            results_dir,
        )
    )
