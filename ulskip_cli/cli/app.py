"""The `ulskip` command: its subcommands and its exit codes."""

import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Annotated

import typer

from ulskip_cli.cli import (
    generate_command,
    model_commands,
    plan_command,
    result_commands,
    run_commands,
)
from ulskip_cli.core import interruption
from ulskip_cli.core.environment import __version__
from ulskip_cli.core.errors import RunError, UsageError, one_line, reason

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
COMMANDS: tuple[Callable[..., None], ...] = (
    generate_command.generate,
    run_commands.run,
    run_commands.sweep,
    run_commands.bench,
    run_commands.tune,
    model_commands.train,
    plan_command.plan,
    model_commands.export,
    run_commands.lm_eval,
    result_commands.score,
    result_commands.report,
    plan_command.config,
    plan_command.env,
)
for command in COMMANDS:
    app.command()(command)

INTERRUPT_CODE = 130  # 128 + SIGINT, as shells have it; Typer turns a KeyboardInterrupt into it


def invoke(arguments: Sequence[str]) -> int:
    """Run a command line and return its exit code; an error prints one line, and gives 2 for
    invalid input, or 1 for a failed run.
    """
    try:
        "".join(arguments).encode()  # fails for bytes that are no UTF-8
        command = typer.main.get_command(app)
        code = command(list(arguments), prog_name="ulskip", standalone_mode=False)
        interruption.raise_if_interrupted()
        if code == INTERRUPT_CODE:
            raise KeyboardInterrupt
        return code if isinstance(code, int) else 0
    except (UsageError, RunError) as error:
        return _complain(str(error), 2 if isinstance(error, UsageError) else 1)
    except typer.TyperException as error:
        return _complain(_explained(error, arguments), error.exit_code)
    except UnicodeError as error:
        return _complain(f"expected texts in UTF-8, got other bytes ({reason(error)})", 2)
    except KeyboardInterrupt:
        return _complain(interruption.MESSAGE, interruption.exit_code())
    except BrokenPipeError:  # the reader, such as `head`, has ended; the flush at exit would fail
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if interruption.received():  # a library may have wrapped the interrupt
            return _complain(interruption.MESSAGE, interruption.exit_code())
        if os.environ.get("ULSKIP_DEBUG"):
            raise
        if isinstance(error, OSError) and error.filename is not None:
            return _complain(
                f"cannot read or write {error.filename} ({error.strerror}); use a path that is"
                " accessible",
                1,
            )
        kind = type(error).__name__
        return _complain(f"{kind}: {reason(error)} (ULSKIP_DEBUG=1 shows the traceback)", 1)


def _explained(error: typer.TyperException, arguments: Sequence[str]) -> str:
    """Return the message of an error in the command line, with what to write instead."""
    message = error.format_message().rstrip(".")
    if message.startswith("No such command"):
        word = arguments[0][:80] if arguments else ""
        if "=" in word:
            return f"expected a command, got '{word}'; write e.g. ulskip run {word}"
        near = re.search(r"Did you mean ('.+')", message)
        advice = f"did you mean {near[1]}?" if near else "`ulskip --help` lists the commands"
        return f"unknown command '{word}'; {advice}"
    if message.startswith("No such option"):
        option = str(getattr(error, "option_name", ""))[:80]
        near_options = ", ".join(getattr(error, "possibilities", None) or ())
        key = option.lstrip("-").replace("-", "_")
        advice = f"keys have no dashes, write {key}=VALUE; `--help` lists the options"
        if near_options:
            advice = f"did you mean {near_options}?"
        return f"unknown option {option}; {advice}"
    return f"{message}; `ulskip {arguments[0][:80]} --help` shows what is expected"


@app.callback(invoke_without_command=True)
def top(
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    """Make LLM inference faster by skipping layers, and measure the cost in quality."""
    if version:
        print(f"ulskip {__version__}")
        raise typer.Exit


def _complain(message: str, code: int) -> int:
    """Print a message, unless it is empty, on standard error; return the exit code."""
    if not message:
        return code
    print(f"ulskip: {one_line(message)}", file=sys.stderr)
    return code
