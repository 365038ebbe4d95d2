"""The `ulskip` command: its subcommands and its exit codes.

Nothing here imports torch, so that help, plans and usage errors are fast.
"""

import logging
import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from ulskip_cli import __version__
from ulskip_cli.cli import (
    config_keys,
    export,
    lists,
    lm_eval,
    plan,
    report,
    run,
    score,
    train,
    tune,
)
from ulskip_cli.cli.completion import install_bash_completion
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
    lists.models,
    lists.tasks,
    lists.strategies,
    lists.env,
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
    for name in (
        "torchao",
        "torch.utils._pytree",
    ):  # transformers imports them, and they speak of kernels for other devices
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        command = typer.main.get_command(app)  # registers Typer's own completion for bash
        install_bash_completion()
        code = command(list(arguments), prog_name="ulskip", standalone_mode=False)
        interruption.check()
        if code == INTERRUPT_CODE:
            raise KeyboardInterrupt
        return code if isinstance(code, int) else 0
    except (UsageError, RunError) as error:
        return _complain(str(error), 2 if isinstance(error, UsageError) else 1)
    except typer.TyperException as error:
        return _complain(error.format_message().rstrip(".") + _advice(error), error.exit_code)
    except KeyboardInterrupt:
        return _complain(interruption.MESSAGE, interruption.exit_code())
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if os.environ.get("ULSKIP_DEBUG"):
            raise
        if error.filename is None:  # of a connection or a library
            return _unforeseen(error)
        return _complain(
            f"cannot read or write {error.filename} ({error.strerror}); use a path that is"
            " accessible",
            1,
        )
    except Exception as error:
        if interruption.received():
            return _complain(interruption.MESSAGE, interruption.exit_code())
        if os.environ.get("ULSKIP_DEBUG"):
            raise
        return _unforeseen(error)


def _unforeseen(error: Exception) -> int:
    first = str(error).strip().split("\n")[0][:300]
    return _complain(f"{type(error).__name__}: {first} (ULSKIP_DEBUG=1 shows the traceback)", 1)


def _advice(error: Exception) -> str:
    """Suggest `limit=` for --limit, and the list of commands for an unknown command."""
    name = str(getattr(error, "option_name", "")).lstrip("-").replace("-", "_")
    from ulskip_cli.core.config_schema import Config

    if name in Config.model_fields:
        return f"; keys of the configuration have no dashes: {name}=<value>"
    if str(error).startswith("No such command") and "Did you mean" not in str(error):
        return "; `ulskip --help` lists the commands"
    return ""


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


if __name__ == "__main__":
    main()
