"""`ulskip report`."""

from pathlib import Path
from typing import Annotated

import typer

from ulskip_cli.cli.options import Json


def report(
    folders: Annotated[
        list[Path] | None, typer.Argument(help="Of results; all under --results-dir if left out.", show_default=False)
    ] = None,
    compare: Annotated[str | None, typer.Option(help="`paper`, or a folder of results to compare with.")] = None,
    html: Annotated[bool, typer.Option("--html", help="Write report.html too, one file to look through.")] = False,
    form: Annotated[
        str, typer.Option("--format", help="terminal; or print markdown, csv or latex and write nothing.")
    ] = "terminal",
    layout: Annotated[str | None, typer.Option(help="table4 (a line a target and approach), or long (a line a point).")] = None,
    output: Annotated[Path | None, typer.Option(help="Where files go; report/ in the folder if left out.")] = None,
    plots: Annotated[bool, typer.Option(help="Draw the pictures.")] = True,
    gate: Annotated[float, typer.Option(help="Share of full's quality that a winner has to keep.")] = 0.9,
    tolerance: Annotated[float, typer.Option(help="By how much a speedup measured again may differ.")] = 0.15,
    examples: Annotated[int, typer.Option(help="Examples on the page, of each data set.")] = 200,
    results_dir: Annotated[Path, typer.Option(help="Where results usually are.")] = Path("results"),
    as_json: Json = False,
) -> None:
    """Make tables, plots and a page of stored rows; --compare A B sets folder B against A."""
    from ulskip_cli.report import build

    build.run(
        build.Options(
            folders or (), compare, form, layout, output, html, plots, gate, tolerance, examples, as_json, results_dir
        )
    )
