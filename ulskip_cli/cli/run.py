"""`ulskip run`, which measures one point, and `ulskip bench`, which times a grid of points."""

from typing import TYPE_CHECKING

from ulskip_cli.cli.options import ConfigDir, Json, Overrides, PrintConfig, Wide
from ulskip_cli.cli.show import print_commented, show_outcome

if TYPE_CHECKING:
    from ulskip_cli.experiments.preflight import ResolvedPoint
    from ulskip_cli.experiments.record import Record


def run(
    overrides: Overrides = None,
    config_dir: ConfigDir = None,
    as_json: Json = False,
    wide: Wide = False,
    print_config: PrintConfig = False,
) -> None:
    """Measure quality and speed of one strategy on one model and task, and compare with the full
    model.
    """
    from ulskip_cli.core import config

    chosen = config.compose(overrides or [], config_dir, "run")
    if print_config:
        print_commented(chosen)
        return
    from ulskip_cli.experiments.preflight import resolve

    point = resolve(chosen)  # before slower imports, so that usage errors answer at once
    from ulskip_cli.cli.progress_bars import ProgressBars
    from ulskip_cli.experiments.results import ResultsFolder
    from ulskip_cli.experiments.statistics import sentence
    from ulskip_cli.experiments.sweep.outcome import run_each
    from ulskip_cli.report import tables

    folder = ResultsFolder.of(chosen)
    with ProgressBars() as bars:
        from ulskip_cli.experiments.runner import Session, run_point

        session = Session(bars)

        def run_one(point: "ResolvedPoint") -> "list[Record]":
            records = run_point(point, session)
            tables.write_tables(folder)
            return records

        outcome = run_each([point], run_one, bars)
    show_outcome(
        outcome, folder, tables.terminal(wide), lambda records: [sentence(records[-1])], as_json
    )


def bench(
    overrides: Overrides = None,
    config_dir: ConfigDir = None,
    as_json: Json = False,
    print_config: PrintConfig = False,
) -> None:
    """Time decoding on random prompts, without a task, e.g. model=smollm2-135m ratio=2,3
    batch_size=1,8.

    Points are measured again on every call.
    """
    from ulskip_cli.cli.progress_bars import ProgressBars
    from ulskip_cli.experiments.preflight import Resolver, resolve_benchmark
    from ulskip_cli.experiments.results import ResultsFolder
    from ulskip_cli.experiments.sweep.grid import points
    from ulskip_cli.experiments.sweep.outcome import run_each

    grid = points(overrides or [], config_dir, preset="bench")
    if print_config:
        print_commented(*grid)
        return
    resolver = Resolver()
    resolved = [resolve_benchmark(point, resolver) for point in grid]
    folder = ResultsFolder.of(resolved[-1].config)
    with ProgressBars() as bars:
        from ulskip_cli.experiments.benchmark import Benchmarks
        from ulskip_cli.experiments.runner import Session

        outcome = run_each(resolved, Benchmarks(resolved, Session(bars)).run_point, bars)
    from ulskip_cli.report import benchmark as report
    from ulskip_cli.report import tables

    if outcome.records:
        tables.write_tables(folder)
        report.write_bench_report(folder)
    show_outcome(outcome, folder, report.terminal, report.lead, as_json)
