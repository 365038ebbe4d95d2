"""The command `ulskip report`."""

from pathlib import Path
from typing import Annotated

import typer

from ulskip_cli.cli.shared import PATH, make_console
from ulskip_cli.core.errors import UsageError

WIDTH_IN_FILE = 100  # columns of output into a file or a pipe
WORSE = 3  # exit code of --check


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
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="With --compare FOLDER: exit with code 3 if speed or quality got surely worse.",
        ),
    ] = False,
    html: Annotated[
        bool, typer.Option("--html", help="Also write report.html, a page that needs no network.")
    ] = False,
    plots: Annotated[bool, typer.Option(help="Draw the plot.")] = True,
    gate: Annotated[
        float,
        typer.Option(
            min=0.01, max=1, help="Quality gate: share of full's quality that a winner keeps."
        ),
    ] = 0.9,
    results_dir: Annotated[
        Path, typer.Option(**PATH, help="Folder that holds the results folders.")
    ] = Path("results"),
) -> None:
    """Write tables, a plot and a page of stored rows; `NEW --compare OLD` compares two folders."""
    if check and compare in (None, "paper"):
        raise UsageError("--check requires --compare FOLDER, the results to compare with")
    from ulskip_cli.report import build
    from ulskip_cli.report.rows import find_folders

    made = build.Report(find_folders(folders or (), results_dir), compare, gate, results_dir)
    written = build.write(made, plots, html)
    build.show(made, written, make_console(WIDTH_IN_FILE))
    if check and made.comparison and (losses := made.comparison.losses()):
        print("\n".join(f"surely worse: {loss}" for loss in losses))
        raise typer.Exit(WORSE)
