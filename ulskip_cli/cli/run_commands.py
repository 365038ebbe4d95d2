"""The commands that measure and store rows: `ulskip run`, `sweep`, `bench`, `tune` and `lm-eval`.
`config_dir` of every command takes effect when it is parsed (`cli/shared.py`).
"""

import os
import shlex
import signal
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ulskip_cli.cli.shared import (
    ConfigDir,
    Force,
    Json,
    Overrides,
    PrintConfig,
    make_console,
    print_json,
    print_yaml,
    tell_unused,
)
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.files import printable

if TYPE_CHECKING:
    from ulskip_cli.experiments.ledger import Ledger, SweepOutcome
    from ulskip_cli.experiments.results import ResultsFolder

# beginnings of the harness's options that name tasks, or print its help
_NAMING_TASKS = ("--task", "-t", "--config", "-C", "--help", "-h")


def run(
    overrides: Overrides,
    config_dir: ConfigDir = None,
    as_json: Json = False,
    force: Force = False,
    print_config: PrintConfig = False,
) -> None:
    """Measure quality and speed of one strategy on one model and task, and compare with the full
    model. Stored rows are shown, and not measured again unless `--force` is given.
    """
    from ulskip_cli.core.config import compose
    from ulskip_cli.experiments.ledger import Ledger, make_jobs

    chosen = compose(overrides, "run")
    if print_config:
        print_yaml(chosen)
        return
    jobs = make_jobs([chosen])
    tell_unused(overrides, [chosen])
    # The error of the only point ends the command.
    _run_and_show(Ledger(jobs, force=force), as_json, raises=True)


def bench(
    overrides: Overrides,
    config_dir: ConfigDir = None,
    as_json: Json = False,
    force: Force = False,
    print_config: PrintConfig = False,
) -> None:
    """Time decoding on random prompts, without a task, e.g. model=smollm2-135m ratio=2,3
    batch_size=1,8.

    After an interruption or a failure, the same command runs the remaining points.
    """
    from ulskip_cli.experiments.grid import grid_configs
    from ulskip_cli.experiments.ledger import Ledger, make_jobs

    grid = grid_configs(overrides, "bench")
    if print_config:
        print_yaml(*grid)
        return
    jobs = make_jobs(grid, command="bench")
    tell_unused(overrides, grid)
    _run_and_show(Ledger(jobs, force=force), as_json)


def sweep(
    overrides: Overrides,
    config_dir: ConfigDir = None,
    as_json: Json = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List points and their states; run nothing.")
    ] = False,
    force: Force = False,
    print_config: PrintConfig = False,
    since: Annotated[
        int | None,
        typer.Option("--since", hidden=True, help="For workers: number of rows before the sweep."),
    ] = None,
) -> None:
    """Run every combination of the values that are named, e.g. strategy=unified,top_skip ratio=2,3;
    other keys have the defaults of `ulskip run`.

    Without keys, it runs the paper's grid, experiment=reproduce. After an interruption or a
    failure, the same command runs the remaining points.
    """
    from ulskip_cli.experiments.grid import grid_configs
    from ulskip_cli.experiments.launchers import END_WITH_STDIN
    from ulskip_cli.experiments.ledger import Ledger, make_jobs
    from ulskip_cli.experiments.sweep import run_jobs

    grid = grid_configs(overrides)
    if print_config:
        print_yaml(*grid)
        return
    jobs = make_jobs(grid)
    tell_unused(overrides, grid)
    if dry_run:
        _show_dry_run(Ledger(jobs, force=force, quick=True), as_json)  # quick: without torch
        return
    if os.environ.get(END_WITH_STDIN):  # set by the launcher that started this worker
        threading.Thread(target=_end_with_stdin, daemon=True).start()
    ledger = Ledger(jobs, force=force, since=since)
    if since is not None:  # this process is a worker
        from ulskip_cli.cli.progress_bars import SweepDisplay

        with SweepDisplay(jobs, writes_tables=False) as observer:
            run_jobs(ledger, observer)
        return
    # The options are in force here; workers get them on their command lines.
    words = list(overrides)
    if config_dir:
        words += ["--config-dir", str(config_dir)]
    if force:
        words.append("--force")
    _run_and_show(ledger, as_json, worker_words=words)


def tune(
    overrides: Overrides,
    config_dir: ConfigDir = None,
    as_json: Json = False,
    print_config: PrintConfig = False,
) -> None:
    """Find what to use for speedup=1.5, or for quality=0.95 of the full model's score: look-ups or
    another engine with all layers, or the best layers and patches.

    After an interruption, the same command continues.
    """
    from ulskip_cli.core.config import compose_tuning

    chosen = compose_tuning(overrides)
    if print_config:
        print_yaml(chosen)
        return
    from ulskip_cli.tuning import Tuning

    tuning = Tuning.of(chosen)  # before slower imports, so that usage errors answer at once
    from ulskip_cli.cli.progress_bars import SweepDisplay
    from ulskip_cli.core.command_line import command_line
    from ulskip_cli.experiments.ledger import SweepOutcome
    from ulskip_cli.experiments.results import ResultsFolder

    result = tuning.run(SweepDisplay)
    if as_json:
        print_json(result.as_json())
        return
    outcome = SweepOutcome(len(tuning.tried), tuning.tried, [])
    _show_outcome(outcome, ResultsFolder.of(chosen), as_json=False, lead=result.verdict)
    make_console().print(f"command: {command_line(result.use, 'run')}")


def lm_eval(
    overrides: Overrides,
    config_dir: ConfigDir = None,
    print_config: PrintConfig = False,
) -> None:
    """Run tasks of lm-evaluation-harness with layer skipping.

    Words behind `--` are options of the harness; `ulskip lm-eval -- --help` lists them.
    Example: ulskip lm-eval model=tiny ratio=2 -- --tasks arc_easy --limit 100
    """
    from ulskip_cli.core.config import compose

    # The parser has dropped the `--`, but the first option of the harness begins with a dash.
    keys = list(takewhile(lambda word: not word.startswith("-"), overrides))
    words = overrides[len(keys) :]
    chosen = compose(keys, command="lm-eval")
    if print_config:
        print_yaml(chosen)
        return
    if not any(word.startswith(_NAMING_TASKS) for word in words):
        raise UsageError(
            "expected tasks of lm-evaluation-harness behind `--`, got none; an example is"
            " `-- --tasks arc_easy`"
        )
    if find_spec("lm_eval") is None:
        raise UsageError("lm-evaluation-harness is missing; run: pip install 'ulskip[lm-eval]'")
    from ulskip_cli.cli.progress_bars import ProgressBars
    from ulskip_cli.experiments.point import Resolver

    Resolver().schedule(chosen, "lm-eval")  # before slower imports
    ProgressBars().note(f"load {chosen.model.label}")  # the harness has bars of its own
    from ulskip_cli.experiments.lm_eval_adapter import run_harness
    from ulskip_cli.report.tables import write_tables

    try:
        folder = run_harness(keys, chosen, words)
    except SystemExit as ended:  # after its help, or an error that it has printed
        raise typer.Exit(ended.code if isinstance(ended.code, int) else 1) from None
    if folder.records():
        write_tables(folder)
        make_console().print(f"written to {folder.path}/")


def _run_and_show(
    ledger: "Ledger", as_json: bool, raises: bool = False, worker_words: Sequence[str] = ()
) -> None:
    """Run the jobs that are to do, here or by workers with the command line `worker_words`; show
    all rows and write reports.
    """
    from ulskip_cli.cli.progress_bars import SweepDisplay
    from ulskip_cli.experiments.sweep import run_by_workers, run_jobs, start_over

    if ledger.force:
        start_over(ledger)
    with SweepDisplay(ledger.jobs) as observer:
        ledger.update(observer, is_new=False)
        if not ledger.to_do:
            observer.note("nothing to run: all points are finished; --force measures them again")
        if not ledger.force:
            for job in ledger.to_do:
                reason = ledger.why_again(job)
                if reason:
                    observer.note(f"{job.label}: {reason}")
        if worker_words and ledger.launcher.name != "inline":
            run_by_workers(ledger, observer, worker_words)
        else:
            run_jobs(ledger, observer, raises=raises)
    outcome = ledger.outcome()
    # The paper's report compares several points by their quality, which benchmarks do not measure.
    is_run = ledger.jobs[0].settings.command == "run"
    if outcome.num_requested > 1 and is_run and ledger.folder.records():
        from ulskip_cli.report.paper import write_paper_report

        write_paper_report(ledger.folder)
    _show_outcome(outcome, ledger.folder, as_json)


def _end_with_stdin() -> None:
    """End this worker when the process that started it ends, which closes its standard input."""
    sys.stdin.buffer.read()  # returns at its end
    os.kill(os.getpid(), signal.SIGTERM)


def _show_dry_run(ledger: "Ledger", as_json: bool) -> None:
    """Print the points of a sweep with their states."""
    points = []
    for job in ledger.jobs:
        state, note = ledger.state(job)
        points.append({"id": job.id, "label": job.label, "state": state, "note": note})
    counts = Counter(point["state"] for point in points)
    if as_json:
        print_json({"points": points, "counts": counts})
        return
    console, width = make_console(), max(len(job.label) for job in ledger.jobs)
    for point in points:
        line = f"{point['label']:<{width}}  {point['id']}  {point['state']:<6}  {point['note']}"
        console.print(printable(line.rstrip()))
    noun = "point" if len(points) == 1 else "points"
    parts = ", ".join(f"{count} {state}" for state, count in counts.items())
    console.print(f"\n{len(points)} {noun}: {parts}")


def _show_outcome(
    outcome: "SweepOutcome", folder: "ResultsFolder", as_json: bool, lead: Sequence[str] = ()
) -> None:
    """Print the rows of a command; raise RunError if a point failed. `lead` replaces the sentences
    on the best points.
    """
    if as_json:
        print_json(outcome.as_json())
    elif outcome.records:
        _show_rows(outcome, folder, lead)
    outcome.check()


def _show_rows(outcome: "SweepOutcome", folder: "ResultsFolder", lead: Sequence[str]) -> None:
    from ulskip_cli.experiments.statistics import sentence
    from ulskip_cli.report import tables, verdicts
    from ulskip_cli.report.rows import displayed, warnings

    console, records = make_console(), [displayed(row, Path()) for row in outcome.records.values()]
    if not lead and outcome.num_requested > 1:
        lead = verdicts.lead(records)
    for line in lead or [sentence(records[-1])]:
        console.print(line, style="bold")
    table = tables.draw(tables.short_section(records), console.width, tables.TABLE_FILE)
    console.print(table, soft_wrap=False)
    for warning in warnings(records):
        console.print(f"warning: {warning}", style="yellow", soft_wrap=False)
    written = f"written to {folder.path}/"
    if any(record.num_examples for record in records):
        written += f"; answers: ulskip report {shlex.quote(str(folder.path))} --html"
    console.print(written)
