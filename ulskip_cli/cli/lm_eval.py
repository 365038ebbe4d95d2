"""`ulskip lm-eval`: the options of lm-evaluation-harness on a model that skips layers."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import typer

from ulskip_cli.cli.show import make_console
from ulskip_cli.core.errors import UsageError


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

    from ulskip_cli.report import tables

    for column in ("results", "groups"):
        if column in results:
            print(make_table(results, column))
    tables.write_tables(folder)
    make_console().print(f"rows are in {folder.path}/", highlight=False, soft_wrap=True)
