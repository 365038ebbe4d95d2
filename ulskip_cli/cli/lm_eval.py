"""`ulskip lm-eval`: tasks of lm-evaluation-harness on a model that skips layers."""

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from importlib.util import find_spec
from typing import NoReturn

import typer
from typer._click import Context
from typer._click.exceptions import NoSuchOption
from typer.core import TyperCommand

from ulskip_cli.cli.shared import ConfigDir, Overrides, PrintConfig, make_console, print_yaml
from ulskip_cli.core.errors import UsageError

_HELP = "`ulskip lm-eval -- --help` lists the options of the harness"


class CommandWithHarness(TyperCommand):
    """A command that leaves the words behind `--` to the parser of lm-evaluation-harness."""

    def parse_args(self, ctx: Context, args: list[str]) -> list[str]:
        """Parse the words before `--`, and keep those behind it."""
        end = args.index("--") if "--" in args else len(args)
        ctx.meta["harness"] = args[end + 1 :]
        try:
            return super().parse_args(ctx, args[:end])
        except NoSuchOption as error:
            raise UsageError(
                f"no such option: {error.option_name}; options of the harness stand behind `--`, "
                "e.g. ulskip lm-eval model=tiny ratio=2 -- --tasks arc_easy"
            ) from None


class _HarnessParser(ArgumentParser):
    """A parser whose errors have one line, and whose `--help` ends the command as Typer does."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; {_HELP}")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        raise typer.Exit(status)


def lm_eval(
    context: typer.Context,
    overrides: Overrides,
    config_dir: ConfigDir = None,
    print_config: PrintConfig = False,
) -> None:
    """Run tasks of lm-evaluation-harness with layer skipping.

    Words behind `--` are options of the harness; `ulskip lm-eval -- --help` lists them.
    Example: ulskip lm-eval model=tiny ratio=2 -- --tasks arc_easy --limit 100
    """
    from ulskip_cli.core.config import compose

    chosen = compose(overrides, command="lm-eval")
    if print_config:
        print_yaml(chosen)
        return
    if find_spec("lm_eval") is None:
        raise UsageError("lm-evaluation-harness is missing; run: pip install 'ulskip[lm-eval]'")
    options = parse_options(context.meta["harness"])
    from ulskip_cli.experiments import lm_eval_adapter

    folder, results = lm_eval_adapter.evaluate_tasks(chosen, options)
    from lm_eval.utils import make_table

    from ulskip_cli.report import tables

    for column in ("results", "groups"):
        if column in results:
            print(make_table(results, column))
    tables.write_tables(folder)
    make_console().print(f"written to {folder.path}/")


def parse_options(words: Sequence[str]) -> Namespace:
    """Parse options with the parser of the harness's command `lm-eval run`."""
    from lm_eval._cli.run import Run

    parser = _HarnessParser(prog="lm-eval")
    Run.create(parser.add_subparsers())
    return parser.parse_args(["run", *words])
