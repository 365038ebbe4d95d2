"""What single commands do once their options are read: run a point and show it, list a group, score again."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from ulskip_cli.core import config
from ulskip_cli.core.config_schema import Config

if TYPE_CHECKING:
    from rich.table import Table

    from ulskip_cli.core.progress import ProgressCallback, Stopwatch
    from ulskip_cli.experiments import rescore
    from ulskip_cli.experiments.record import Row
    from ulskip_cli.experiments.sweep import sequential


def run_point(point: Config, as_json: bool, watch: "Stopwatch", profile: bool) -> None:
    """Run a point, show the table, say where everything is."""
    from ulskip_cli.experiments.results import ResultsFolder
    from ulskip_cli.experiments.sweep import sequential
    from ulskip_cli.report import table

    def start(progress: "ProgressCallback") -> sequential.RunPoint:
        watch.inner = progress
        watch.phase("imports", 0)
        from ulskip_cli.experiments.runner import Session
        from ulskip_cli.experiments.runner import run_point as run_rows

        session = Session(watch)

        def run_one(point: Config) -> "list[Row]":
            rows = run_rows(point, session)
            table.write_tables(ResultsFolder.of(point))
            return rows

        return run_one

    outcome = sequential.run([point], start)
    watch.stop()
    told = outcome.told()
    if profile:
        from ulskip_cli.cli import profile as report

        told = {**told, "profile": watch.seconds}
        Console(stderr=True).print(report.terminal(watch.seconds))
    show(outcome, told if as_json else None, point, lambda rows, width: [table.terminal(rows, width)])


def show(
    outcome: "sequential.SweepOutcome",
    told: "Row | None",
    last: Config,
    tables: Callable[["Sequence[Row]", int], "Sequence[Table]"],
) -> None:
    """The object that is told, or tables and warnings; exit code 1 if a point failed."""
    from ulskip_cli.experiments.results import ResultsFolder

    rows = list(outcome.rows.values())
    if told is not None:
        print(json.dumps(told, ensure_ascii=False))
    elif rows:
        console = Console(width=None if sys.stdout.isatty() else 120)
        for table in tables(rows, console.width):
            console.print(table)
        for warning in sorted({text for row in rows for text in row["warnings"]}):
            console.print(f"warning: {warning}", style="yellow", highlight=False)
        console.print(f"written to {ResultsFolder.of(last).path}/", highlight=False, soft_wrap=True)
    outcome.check()


def list_group(group: str, config_dir: Path | None, as_json: bool) -> None:
    """Names and descriptions of a group, from the configs themselves."""
    from omegaconf import OmegaConf

    entries: dict[str, Any] = {}
    for name, path in config.group_choices(group, config_dir).items():
        entries[name] = str(OmegaConf.select(OmegaConf.load(path), "description", default=""))
    if as_json:
        print(json.dumps(entries))
        return
    width = max(map(len, entries))
    for name, description in entries.items():
        print(f"{name:<{width}}  {description}")


def score(target: str, wanted: "rescore.ExtraMetrics", language: str | None, results_dir: Path, as_json: bool) -> None:
    """Score a folder's, a run's or a file's answers, keep the scores, show what is new and what differs."""
    from ulskip_cli.experiments import rescore

    file = Path(target).expanduser()
    if file.is_file() and not (file.parent.parent / "runs.jsonl").is_file():
        scores = rescore.score_file(file, wanted, language)
        print(json.dumps(asdict(scores)) if as_json else "\n".join(f"{k}  {v:.4f}" for k, v in scores.values.items()))
        return
    from ulskip_cli.cli.progress_bars import ProgressBars
    from ulskip_cli.report import table

    runs = rescore.runs_at(target, results_dir)
    scored = []
    with ProgressBars() as bars:
        told = bars.phase("score", len(runs))
        for folder, row in runs:
            scored.append(rescore.rescore(folder, row, wanted))
            scored[-1].save()
            told(len(scored))
    for folder in {str(one.folder.path): one.folder for one in scored}.values():
        table.write_tables(folder)
    rows = [one.row for one in scored]
    if as_json:
        print(json.dumps(rows[0] if len(rows) == 1 else {"rows": rows}, ensure_ascii=False))
        return
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table.terminal(rows, console.width))
    for one in scored:
        for key, (before, now) in one.changed.items():
            console.print(f"{one.row['id']}: {key} was {before:.4f}, is {now:.4f}", style="yellow", highlight=False)
    added = ", ".join(sorted({key for one in scored for key in one.added})) or "nothing"
    differ = sum(bool(one.changed) for one in scored)
    console.print(f"added: {added}; {len(scored) - differ} of {len(scored)} runs score as before", highlight=False)
