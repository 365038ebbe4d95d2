"""The `ulskip` command: its subcommands and its exit codes.

Nothing here imports torch, so that help, plans and usage errors are fast.
"""

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from ulskip_cli import __version__
from ulskip_cli.cli import (
    config_keys,
    export,
    lm_eval,
    plan,
    report,
    run,
    score,
    train,
    tune,
)
from ulskip_cli.cli.config_keys import CommandWithKeys
from ulskip_cli.core import interruption
from ulskip_cli.core.errors import RunError, UsageError, one_line

app = typer.Typer(
    help="Make LLM inference faster by skipping layers, and measure the cost in quality.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=(
        "Overrides are key=value, e.g. ulskip run task=wmt ratio=2.0. `ulskip config` lists all"
        " keys."
    ),
)
for command in (run.run, run.sweep, run.bench, tune.tune, train.train, plan.plan, export.export):
    app.command(cls=CommandWithKeys)(command)
app.command(cls=lm_eval.CommandWithHarness)(lm_eval.lm_eval)
for function in (
    score.score,
    report.report,
    config_keys.config,
    config_keys.models,
    config_keys.tasks,
    config_keys.strategies,
    config_keys.env,
):
    app.command()(function)

INTERRUPT_CODE = 130  # 128 + SIGINT, as shells have it; Typer turns a KeyboardInterrupt into it


def main() -> None:
    """Run the command; an error prints one line and exits with code 2 for invalid input, or with 1
    for a failed run.
    """
    interruption.install()
    code = invoke(sys.argv[1:])
    interruption.release()
    sys.exit(code)


def invoke(arguments: Sequence[str]) -> int:
    """Run a command line and return its exit code."""
    try:
        code = app(list(arguments), prog_name="ulskip", standalone_mode=False)
        interruption.check()
        if code == INTERRUPT_CODE:
            raise KeyboardInterrupt
        return code if isinstance(code, int) else 0
    except (UsageError, RunError) as error:
        return _complain(str(error), 2 if isinstance(error, UsageError) else 1)
    except typer.TyperException as error:
        return _complain(_explained(error), error.exit_code)
    except KeyboardInterrupt:
        return _complain(interruption.MESSAGE, interruption.exit_code())
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if interruption.received():
            return _complain(interruption.MESSAGE, interruption.exit_code())
        if os.environ.get("ULSKIP_DEBUG"):
            raise
        first = str(error).strip().split("\n")[0][:300]  # OSErrors of connections, too
        return _complain(f"{type(error).__name__}: {first} (ULSKIP_DEBUG=1 shows the traceback)", 1)


def _explained(error: typer.TyperException) -> str:
    """Return the message of an error in the command line, with the form of overrides."""
    message = error.format_message().rstrip(".")
    if message.startswith("No such option"):
        return f"{message}; keys have no dashes, e.g. ratio=2, and options follow the command"
    if message.startswith("No such command"):
        return f"{message}; overrides follow the command, e.g. ulskip run ratio=2"
    return message


@app.callback(invoke_without_command=True)
def top(
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    """Make LLM inference faster by skipping layers, and measure the cost in quality."""
    if version:
        print(f"ulskip {__version__}")
        raise typer.Exit


def _complain(message: str, code: int) -> int:
    if not message:
        return code
    print(f"ulskip: {one_line(message)}", file=sys.stderr)
    return code
