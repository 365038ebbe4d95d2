"""`ulskip sweep`: a grid of points, resumable, and its dry run."""

import json
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from ulskip_cli.cli.options import ConfigDir, Json, Overrides, PrintConfig, Wide
from ulskip_cli.cli.show import make_console, print_commented, show_outcome
from ulskip_cli.core.printable import printable

if TYPE_CHECKING:
    from ulskip_cli.experiments.sweep.jobs import Job
    from ulskip_cli.experiments.sweep.status import SweepStatus


def sweep(
    overrides: Overrides = None,
    config_dir: ConfigDir = None,
    as_json: Json = False,
    wide: Wide = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List points and their states; run nothing.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Run finished points again.")] = False,
    fail_fast: Annotated[
        bool, typer.Option("--fail-fast", help="Stop at the first point that fails.")
    ] = False,
    print_config: PrintConfig = False,
    since: Annotated[
        int | None,
        typer.Option("--since", hidden=True, help="Rows that were there before, of a worker."),
    ] = None,
) -> None:
    """Run every point of a grid, e.g. strategy=unified,top_skip ratio=2,3.

    After an interruption or a failure, the same command runs the remaining points.
    """
    from ulskip_cli.experiments.sweep.grid import points
    from ulskip_cli.experiments.sweep.jobs import make_jobs, results_folder

    grid = points(overrides or [], config_dir)
    if print_config:
        print_commented(*grid)
        return
    jobs = make_jobs(grid)
    folder = results_folder(jobs)
    if dry_run:
        from ulskip_cli.experiments.sweep.status import SweepStatus

        status = SweepStatus(folder, jobs[0].config.launcher.name, force, quick=True)
        show_dry_run(jobs, status, as_json)
        return
    from ulskip_cli.cli.sweep_display import SweepDisplay
    from ulskip_cli.experiments.sweep.launchers import END_WITH_STDIN
    from ulskip_cli.experiments.sweep.run import SweepOptions, run_sweep
    from ulskip_cli.report import tables, winners

    words = [*(overrides or []), *(["--config-dir", str(config_dir)] if config_dir else [])]
    words += [*["--force"] * force, *["--fail-fast"] * fail_fast]
    if os.environ.get(END_WITH_STDIN):
        threading.Thread(target=_end_with_stdin, daemon=True).start()
    write = tables.write_tables if since is None else lambda folder: None
    with SweepDisplay(jobs, write) as display:
        outcome = run_sweep(jobs, SweepOptions(force, fail_fast, since, words), display)
    if since is not None:
        return
    if len(jobs) > 1 and folder.records():
        from ulskip_cli.report.paper import write_paper_report

        write_paper_report(folder)
    show_outcome(outcome, folder, tables.terminal(wide), winners.lead, as_json)


def _end_with_stdin() -> None:
    """End this worker when its standard input is closed, because the process that started it has
    ended.
    """
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)


def show_dry_run(jobs: "Sequence[Job]", status: "SweepStatus", as_json: bool) -> None:
    """Print the points of a sweep with their states."""
    states = [status.describe(job) for job in jobs]
    counts = Counter(state.state for state in states)
    if as_json:
        points = [
            {"id": job.id, "label": job.label, **asdict(state)}
            for job, state in zip(jobs, states, strict=True)
        ]
        print(json.dumps({"points": points, "counts": counts}, ensure_ascii=False))
        return
    table = Table(box=SIMPLE_HEAD)
    for name in ("point", "id", "state", ""):
        table.add_column(name, no_wrap=bool(name))
    for job, state in zip(jobs, states, strict=True):
        table.add_row(escape(job.label), job.id, state.state, escape(printable(state.note)))
    console = make_console()
    console.print(table)
    parts = ", ".join(f"{count} {state}" for state, count in counts.items())
    console.print(f"{len(jobs)} points: {parts}", highlight=False)
