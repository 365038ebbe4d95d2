"""The `ulskip` command. Each subcommand composes a configuration and calls one function.

Nothing here imports torch at the top: help, plans and usage errors answer at once.
"""

import contextlib
import json
import logging
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, fields
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

from ulskip_cli import __version__
from ulskip_cli.core import config
from ulskip_cli.core.config_schema import Config
from ulskip_cli.core.errors import RunError, UsageError

if TYPE_CHECKING:
    from ulskip_cli.core.progress import ProgressCallback

app = typer.Typer(
    help="Faster LLM inference by skipping layers, with the price of the speed measured.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Overrides are key=value: model= task= strategy= decoding= experiment= ratio= ... See `ulskip run --print-config`.",
)
Overrides = Annotated[list[str] | None, typer.Argument(help="key=value, e.g. task=wmt ratio=2.0", show_default=False)]
TrainOverrides = Annotated[
    list[str] | None,
    typer.Argument(help="key=value, e.g. model.path=DIR train=lora train.ratios=2 output=runs/mine", show_default=False),
]
ConfigDir = Annotated[Path | None, typer.Option(help="A folder of your own config groups, e.g. DIR/strategy/mine.yaml.")]
INTERRUPT_CODE = 130  # 128 + SIGINT, as shells have it; Typer turns Ctrl-C into it
INTERRUPTED = "interrupted; what was finished is kept, and the same command carries on"
Json = Annotated[bool, typer.Option("--json", help="One JSON object on the last line of standard output.")]


def main() -> None:
    """Run the command; bad input is one line and exit code 2, a failed run one line and exit code 1."""
    sys.exit(invoke(sys.argv[1:]))


def invoke(arguments: Sequence[str]) -> int:
    """Run a command line and return its exit code."""
    from typer._click.exceptions import ClickException
    from typer._click.exceptions import UsageError as ClickUsageError

    for name in ("torchao", "torch.utils._pytree"):  # transformers imports them, and they speak of kernels for other devices
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        code = app(list(arguments), standalone_mode=False)
        return _complain(INTERRUPTED, code) if code == INTERRUPT_CODE else code if isinstance(code, int) else 0
    except ClickUsageError as error:
        return _complain(error.format_message() + _keys_have_no_dashes(error), 2)
    except UsageError as error:
        return _complain(str(error), 2)
    except RunError as error:
        return _complain(str(error), 1)
    except ClickException as error:
        return _complain(error.format_message(), error.exit_code)
    except KeyboardInterrupt:
        return _complain(INTERRUPTED, INTERRUPT_CODE)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if os.environ.get("ULSKIP_DEBUG"):
            raise
        first = str(error).strip().split("\n")[0][:300]
        return _complain(f"{type(error).__name__}: {first} (ULSKIP_DEBUG=1 shows the traceback)", 1)


def _keys_have_no_dashes(error: Exception) -> str:
    """A word for who writes --limit where limit= is meant."""
    name = str(getattr(error, "option_name", "")).lstrip("-").replace("-", "_")
    return f"; keys of the configuration have no dashes: {name}=..." if name in {one.name for one in fields(Config)} else ""


@app.callback(invoke_without_command=True)
def top(version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False) -> None:
    """Faster LLM inference by skipping layers, with the price of the speed measured."""
    if version:
        print(f"ulskip {__version__}")
        raise typer.Exit


@app.command()
def run(
    overrides: Overrides = None,
    config_dir: ConfigDir = None,
    as_json: Json = False,
    print_config: Annotated[bool, typer.Option("--print-config", help="Show the resolved configuration and stop.")] = False,
    profile: Annotated[bool, typer.Option("--profile", help="Show where the time of the run went.")] = False,
) -> None:
    """Measure quality and speed of one strategy on one model and task, beside the full model."""
    from ulskip_cli.cli import commands
    from ulskip_cli.core import environment
    from ulskip_cli.core.progress import Stopwatch
    from ulskip_cli.experiments import preflight

    watch = Stopwatch("start", time.monotonic() - environment.process_seconds())
    watch.phase("compose and check", 0)
    chosen = config.compose(overrides or [], config_dir)
    if print_config:
        print(config.to_yaml(chosen), end="")
        return
    preflight.check_run(chosen)
    commands.run_point(chosen, as_json, watch, profile)


@app.command()
def sweep(
    overrides: Overrides = None,
    config_dir: ConfigDir = None,
    as_json: Json = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the points, which are done, and the time left.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Run finished points again.")] = False,
    fail_fast: Annotated[bool, typer.Option("--fail-fast", help="Stop at the first point that fails.")] = False,
) -> None:
    """Run a grid, e.g. strategy=unified,top_skip ratio=2,3; killed or failed, the same command goes on with what is left."""
    from ulskip_cli.experiments.sweep.grid import points
    from ulskip_cli.experiments.sweep.jobs import make_jobs, results_folder

    jobs = make_jobs(points(overrides or [], config_dir))
    folder = results_folder(jobs)
    if dry_run:
        from ulskip_cli.cli import dry_run as report
        from ulskip_cli.core import environment
        from ulskip_cli.experiments.sweep.launchers import SHARED
        from ulskip_cli.experiments.sweep.status import SweepStatus

        anywhere = jobs[0].config.launcher.name in SHARED
        ledger = SweepStatus(folder, lambda row: anywhere or environment.is_likely_here(row), force)
        report.show(jobs, ledger, as_json, jobs[0].config.launcher.workers or 1)
        return
    from ulskip_cli.cli import commands
    from ulskip_cli.experiments.sweep import run
    from ulskip_cli.report import table

    outcome = run.sweep(jobs, run.SweepOptions(force, fail_fast))
    if len(jobs) > 1 and folder.rows():
        from ulskip_cli.report.paper import write_paper_report

        write_paper_report(folder)
    told = outcome.told() if as_json else None
    commands.show(outcome, told, jobs[-1].config, lambda rows, width: [table.terminal(rows, width)])


@app.command()
def bench(overrides: Overrides = None, config_dir: ConfigDir = None, as_json: Json = False) -> None:
    """Time decoding on random prompts, without a task, e.g. model=smollm2-135m ratio=2,3 batch_size=1,8; always anew."""
    from ulskip_cli.cli import commands
    from ulskip_cli.experiments import preflight
    from ulskip_cli.experiments.results import ResultsFolder
    from ulskip_cli.experiments.sweep import sequential
    from ulskip_cli.experiments.sweep.grid import points

    chosen = points(overrides or [], config_dir, preset="bench")
    for point in chosen:
        preflight.check_bench(point)

    def start(progress: "ProgressCallback") -> sequential.RunPoint:
        from ulskip_cli.experiments.benchmark import BenchmarkRunner
        from ulskip_cli.experiments.runner import Session

        return BenchmarkRunner(Session(progress)).run_point

    outcome = sequential.run(chosen, start)
    from ulskip_cli.report import bench as report
    from ulskip_cli.report import table

    if outcome.rows:
        for folder in {folder.path: folder for folder in map(ResultsFolder.of, chosen)}.values():
            table.write_tables(folder)
            report.write_bench_report(folder)
    commands.show(outcome, outcome.told() if as_json else None, chosen[-1], report.terminal)


@app.command()
def train(
    overrides: TrainOverrides = None,
    config_dir: ConfigDir = None,
    as_json: Json = False,
    print_config: Annotated[bool, typer.Option("--print-config", help="Show the resolved configuration and stop.")] = False,
) -> None:
    """Train a model with skipping, e.g. train.ratios=[1,2,3]; run again, it carries on where it stopped."""
    from ulskip_cli.training.preflight import check_training

    chosen = config.compose_training(overrides or [], config_dir)
    if print_config:
        print(config.to_yaml(chosen), end="")
        return
    check_training(chosen)
    from ulskip_cli.cli.progress_bars import ProgressBars

    first = os.environ.get("RANK", "0") == "0"  # one of torchrun's processes speaks for all
    output = Path(chosen.output)
    is_new = not output.exists()
    try:
        with ProgressBars(enabled=first) as bars:
            from ulskip_cli.training.run import train as run_training

            record = run_training(chosen, bars)
    except Exception:
        if is_new:
            with contextlib.suppress(OSError):
                output.rmdir()  # fails, as it should, if something was written
        raise
    if not first:
        return
    from ulskip_cli.report.plot import learning_curve

    learning_curve(record, output / "learning_curve")
    if as_json:
        print(json.dumps(record, ensure_ascii=False))
        return
    from ulskip_cli.report.training import training_lines

    for line in training_lines(record, output):
        print(line)


@app.command()
def plan(overrides: Overrides = None, config_dir: ConfigDir = None, as_json: Json = False) -> None:
    """Show which layers would be kept and what that promises, without loading any weights."""
    from ulskip_cli.core.model_metadata import read_metadata
    from ulskip_cli.strategies.plan import make_plan

    chosen = config.compose(overrides or [], config_dir)
    planned = make_plan(chosen, read_metadata(chosen.model))
    if as_json:
        print(json.dumps(asdict(planned)))
        return
    from ulskip_cli.cli.plan import plan_lines

    for line in plan_lines(planned, chosen.model.name):
        print(line)


@app.command()
def score(
    target: Annotated[
        str, typer.Argument(help="A folder of results, a run's id, or a file of generations.", show_default=False)
    ],
    metric: Annotated[list[str] | None, typer.Option(help="A metric to add; may be given several times.")] = None,
    comet_model: Annotated[str | None, typer.Option(help="A COMET model's hub id or checkpoint.")] = None,
    bertscore_model: Annotated[str | None, typer.Option(help="A BERTScore model's hub id or folder.")] = None,
    language: Annotated[str | None, typer.Option(help="Of the answers, for a file that belongs to no run.")] = None,
    results_dir: Annotated[Path, typer.Option(help="Where a run's id is looked up.")] = Path("results"),
    as_json: Json = False,
) -> None:
    """Score stored answers again, with other metrics too, without a model."""
    from ulskip_cli.cli import commands
    from ulskip_cli.experiments import rescore

    wanted = rescore.ExtraMetrics(metric or (), comet_model, bertscore_model)
    commands.score(target, wanted, language, results_dir, as_json)


@app.command()
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
    from ulskip_cli.report import command, gathered

    command.run(
        gathered.Options(
            folders or (), compare, form, layout, output, html, plots, gate, tolerance, examples, as_json, results_dir
        )
    )


@app.command()
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


@app.command("lm-eval")
def lm_eval(
    context: typer.Context,
    tasks: Annotated[list[str], typer.Option("--tasks", "-t", help="Names, groups or YAML files, separated by commas.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value, e.g. model=tiny ratio=2", show_default=False)
    ] = None,
    limit: Annotated[float | None, typer.Option("--limit", "-L", help="Examples of each task; below 1 their share.")] = None,
    num_fewshot: Annotated[int | None, typer.Option("--num_fewshot", "-f", min=0, help="Examples in the prompt.")] = None,
    batch_size: Annotated[str | None, typer.Option("--batch_size", "-b", help="A number, auto or auto:N; default 1.")] = None,
    max_batch_size: Annotated[int | None, typer.Option("--max_batch_size", min=1, help="Where auto begins.")] = None,
    device: Annotated[str | None, typer.Option("--device", help="The same as model.device=, which wins.")] = None,
    apply_chat_template: Annotated[
        bool | None, typer.Option("--apply_chat_template", help="Format prompts with the tokenizer's chat template.")
    ] = None,
    fewshot_as_multiturn: Annotated[
        bool | None,
        typer.Option(
            "--fewshot_as_multiturn/--no_fewshot_as_multiturn", help="Few-shot examples as turns; default with a chat template."
        ),
    ] = None,
    system_instruction: Annotated[str | None, typer.Option("--system_instruction", help="System prompt.")] = None,
    gen_kwargs: Annotated[str | None, typer.Option("--gen_kwargs", help="For generation: key=value,... or JSON.")] = None,
    include_path: Annotated[
        Path | None, typer.Option("--include_path", exists=True, file_okay=False, help="A folder of your own tasks.")
    ] = None,
    output_path: Annotated[str | None, typer.Option("--output_path", "-o", help="Where the harness's JSON goes.")] = None,
    log_samples: Annotated[bool | None, typer.Option("--log_samples", "-s", help="Write every prompt and answer.")] = None,
    samples: Annotated[str | None, typer.Option("--samples", "-E", help='Examples by index: JSON, {"task": [0, 3]}.')] = None,
    seed: Annotated[str | None, typer.Option("--seed", help="One, or four: python,numpy,torch,fewshot.")] = None,
    use_cache: Annotated[str | None, typer.Option("--use_cache", "-c", help="A file that keeps answers to go on from.")] = None,
    cache_requests: Annotated[
        Literal["true", "refresh", "delete"] | None, typer.Option("--cache_requests", help="Keep the prompts that were built.")
    ] = None,
    metadata: Annotated[str | None, typer.Option("--metadata", help="For tasks that need it: key=value,... or JSON.")] = None,
    confirm_run_unsafe_code: Annotated[
        bool | None, typer.Option("--confirm_run_unsafe_code", help="Allow tasks that run generated code.")
    ] = None,
) -> None:
    """Run tasks of lm-evaluation-harness on a model that skips layers, e.g. model=tiny ratio=2 --tasks arc_easy --limit 100."""
    if find_spec("lm_eval") is None:
        raise UsageError("lm-eval needs lm-evaluation-harness: pip install 'ulskip[lm-eval]'")
    from ulskip_cli.experiments import lm_eval_run

    options = {key: value for key, value in context.params.items() if value is not None and key != "overrides"}
    folder, results = lm_eval_run.evaluate(overrides or [], options)
    from lm_eval.utils import make_table

    from ulskip_cli.report import table

    for column in ("results", "groups"):
        if column in results:
            print(make_table(results, column))
    table.write_tables(folder)
    Console(width=None if sys.stdout.isatty() else 120).print(f"rows are in {folder.path}/", highlight=False, soft_wrap=True)


@app.command()
def models(config_dir: ConfigDir = None, as_json: Json = False) -> None:
    """List the models."""
    from ulskip_cli.cli import commands

    commands.list_group("model", config_dir, as_json)


@app.command()
def tasks(config_dir: ConfigDir = None, as_json: Json = False) -> None:
    """List the tasks."""
    from ulskip_cli.cli import commands

    commands.list_group("task", config_dir, as_json)


@app.command()
def strategies(config_dir: ConfigDir = None, as_json: Json = False) -> None:
    """List the strategies."""
    from ulskip_cli.cli import commands

    commands.list_group("strategy", config_dir, as_json)


@app.command()
def env(as_json: Json = False) -> None:
    """Show versions, device, threads and instruction set."""
    from ulskip_cli.core import environment

    facts = {**environment.code(), **environment.machine()}
    if as_json:
        print(json.dumps(facts))
        return
    flat = {**{k: v for k, v in facts.items() if k != "packages"}, **facts["packages"]}
    width = max(map(len, flat))
    for key, value in flat.items():
        print(f"{key:<{width}}  {value}")


def _complain(message: str, code: int) -> int:
    if not message:
        return code
    print(f"ulskip: {' '.join(message.split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
