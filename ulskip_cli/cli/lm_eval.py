"""`ulskip lm-eval`: tasks of lm-evaluation-harness on a model that skips layers."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import typer

from ulskip_cli.cli.options import Overrides, PrintConfig
from ulskip_cli.cli.show import make_console, print_commented
from ulskip_cli.core.config import compose
from ulskip_cli.core.errors import UsageError


def lm_eval(
    context: typer.Context,
    overrides: Overrides = None,
    tasks: Annotated[
        list[str] | None,
        typer.Option("--tasks", "-t", help="Names, groups or YAML files, separated by commas.", show_default=False),
    ] = None,
    limit: Annotated[float | None, typer.Option("--limit", "-L", help="Examples per task; below 1: a share.")] = None,
    num_fewshot: Annotated[int | None, typer.Option("--num_fewshot", "-f", min=0, help="Examples in the prompt.")] = None,
    batch_size: Annotated[str | None, typer.Option("--batch_size", "-b", help="A number, auto or auto:N; default 1.")] = None,
    max_batch_size: Annotated[int | None, typer.Option("--max_batch_size", min=1, help="First size that auto tries.")] = None,
    device: Annotated[str | None, typer.Option("--device", help="Device, if model.device= is not given.")] = None,
    apply_chat_template: Annotated[
        bool | None, typer.Option("--apply_chat_template", help="Format prompts with the tokenizer's chat template.")
    ] = None,
    fewshot_as_multiturn: Annotated[
        bool | None,
        typer.Option(
            "--fewshot_as_multiturn/--no_fewshot_as_multiturn",
            help="Few-shot examples as chat turns; --no_fewshot_as_multiturn: no.",
        ),
    ] = None,
    system_instruction: Annotated[str | None, typer.Option("--system_instruction", help="System prompt.")] = None,
    gen_kwargs: Annotated[str | None, typer.Option("--gen_kwargs", help="Generation arguments: key=value,... or JSON.")] = None,
    include_path: Annotated[
        Path | None, typer.Option("--include_path", exists=True, file_okay=False, help="Folder of your own tasks.")
    ] = None,
    output_path: Annotated[str | None, typer.Option("--output_path", "-o", help="Folder for the JSON of the harness.")] = None,
    log_samples: Annotated[bool | None, typer.Option("--log_samples", "-s", help="Write every prompt and answer.")] = None,
    samples: Annotated[str | None, typer.Option("--samples", "-E", help='Examples by index: JSON, {"task": [0, 3]}.')] = None,
    seed: Annotated[str | None, typer.Option("--seed", help="One seed, or four: python,numpy,torch,fewshot.")] = None,
    use_cache: Annotated[str | None, typer.Option("--use_cache", "-c", help="File of answers to resume from.")] = None,
    cache_requests: Annotated[
        Literal["true", "refresh", "delete"] | None, typer.Option("--cache_requests", help="Cache the prompts.")
    ] = None,
    metadata: Annotated[str | None, typer.Option("--metadata", help="Metadata of tasks: key=value,... or JSON.")] = None,
    confirm_run_unsafe_code: Annotated[
        bool | None, typer.Option("--confirm_run_unsafe_code", help="Allow tasks that run generated code.")
    ] = None,
    print_config: PrintConfig = False,
) -> None:
    """Run tasks of lm-evaluation-harness with layer skipping, e.g. model=tiny ratio=2 --tasks arc_easy --limit 100.

    Options have the names of the harness's own command line.
    """
    if print_config:
        print_commented(compose(overrides or []))
        return
    if not tasks:
        raise UsageError("expected --tasks, got none; e.g. --tasks arc_easy,hellaswag (`lm-eval ls tasks` lists them)")
    if find_spec("lm_eval") is None:
        raise UsageError("lm-eval needs lm-evaluation-harness; install it with: pip install 'ulskip[lm-eval]'")
    from ulskip_cli.experiments import lm_eval_run

    options = {
        key: value for key, value in context.params.items() if value is not None and key not in ("overrides", "print_config")
    }
    folder, results = lm_eval_run.evaluate(overrides or [], options)
    from lm_eval.utils import make_table

    from ulskip_cli.report import tables

    for column in ("results", "groups"):
        if column in results:
            print(make_table(results, column))
    tables.write_tables(folder)
    make_console().print(f"written to {folder.path}/", markup=False, highlight=False, soft_wrap=True)
