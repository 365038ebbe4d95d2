"""The commands on stored results: `ulskip report` and `ulskip score`."""

from pathlib import Path
from typing import Annotated

import typer

from ulskip_cli.cli.shared import PATH, ConfigDir, Json, make_console, print_rows
from ulskip_cli.core.errors import UsageError

WIDTH_IN_FILE = 100  # columns of output into a file or a pipe
WORSE = 3  # exit code of --check


def report(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(
            **PATH,
            help="Results folders, or folders of them. Default: the newest in results/.",
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
) -> None:
    """Write tables, a plot and a page of stored rows; `NEW --compare OLD` compares two folders."""
    if check and compare in (None, "paper"):
        raise UsageError("--check requires --compare FOLDER, the results to compare with")
    from ulskip_cli.report import build
    from ulskip_cli.report.rows import RESULTS_DIR, ROWS_FILE, find_folders

    found = find_folders(folders or [RESULTS_DIR])
    if not folders:  # so that one's own results are not mixed with those of a checkout
        found = [max(found, key=lambda folder: (folder / ROWS_FILE).stat().st_mtime)]
    made = build.Report(found, compare, gate)
    written = build.write(made, plots)
    if html:
        from ulskip_cli.report.html_page import write_page

        written.append(write_page(made, written))
    build.show(made, written, make_console(WIDTH_IN_FILE))
    losses = made.comparison.losses() if check and made.comparison else []
    for loss in losses:
        print(f"surely worse: {loss}")
    if losses:
        raise typer.Exit(WORSE)


def score(
    folder: Annotated[Path, typer.Argument(**PATH, help="Results folder.", show_default=False)],
    metric: Annotated[
        list[str] | None, typer.Option(help="Metric to add; can be given several times.")
    ] = None,
    allow_code: Annotated[
        bool, typer.Option("--allow-code", help="Run the code of answers, for pass_at_1.")
    ] = False,
    config_dir: ConfigDir = None,
    as_json: Json = False,
) -> None:
    """Score stored generations again without running the model, optionally with further metrics."""
    from ulskip_cli.cli.progress_bars import ProgressBars
    from ulskip_cli.experiments import rescore
    from ulskip_cli.experiments.results import ResultsFolder
    from ulskip_cli.report import tables
    from ulskip_cli.report.rows import displayed

    results = ResultsFolder(folder)
    with ProgressBars() as bars:
        runs, scored = rescore.find_runs(results), list[rescore.RescoredRun]()
        report_progress = bars.phase("score", len(runs))
        for record in runs:
            scored.append(rescore.rescore(results, record, metric or (), allow_code))
            if scored[-1].has_news:
                results.append(scored[-1].record)
            report_progress(len(scored))
    tables.write_tables(results)
    records = [run.record for run in scored]
    if as_json:
        print_rows([record.to_row() for record in records])
        return
    console = make_console()
    section = tables.long_section([displayed(record, Path()) for record in records])
    console.print(tables.draw(section, console.width, tables.TABLE_FILE), soft_wrap=False)
    for run in scored:
        for key, (before, now) in run.changed.items():
            console.print(f"{run.record.id}: {key} was {before:.4f}, is {now:.4f}")
    added = ", ".join(sorted({key for run in scored for key in run.added})) or "nothing"
    num_same = sum(not run.changed for run in scored)
    same = f"{num_same} of {len(scored)} runs"
    console.print(f"added: {added}; the other scores of {same} are unchanged")
    if any(run.has_news for run in scored):
        console.print(f"written to {folder}/")
