"""SIGINT (Ctrl-C), SIGTERM (Slurm, `kill`) and SIGHUP (a closed terminal) end a command as a
KeyboardInterrupt, with the exit code that shells use. Imports nothing slow.
"""

import atexit
import contextlib
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
MESSAGE = "interrupted; finished work is kept, and the same command continues"
_received: list[int] = []


class Interruption(KeyboardInterrupt):
    """A signal came. Python ends a process by SIGINT after an unhandled KeyboardInterrupt, but not
    after a subclass.
    """


def install() -> None:
    """Handle the signals from now on; one that nohup or a shell ignores stays ignored."""
    sys.unraisablehook = _report_unraisable
    _handle(_interrupt)


def release() -> None:
    """Let a signal end the process without a message, because the command has ended."""
    _handle(signal.SIG_DFL)


def _handle(handler: Callable[[int, FrameType | None], None] | signal.Handlers) -> None:
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def end_process(code: int) -> NoReturn:
    """End the process after its exit functions; freeing modules and waiting for threads takes
    seconds after torch was imported.
    """
    atexit._run_exitfuncs()
    with contextlib.suppress(OSError):  # a closed pipe or terminal
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def received() -> bool:
    """Return True if a signal came; a later exception can come from it, because Python wraps
    exceptions in a class body.
    """
    return bool(_received)


def raise_if_interrupted() -> None:
    """Raise KeyboardInterrupt if a signal came and a library swallowed its exception."""
    if _received:
        raise Interruption


def exit_code() -> int:
    """Return 128 + the signal that came, as shells do; by default SIGINT."""
    return 128 + (_received[0] if _received else signal.SIGINT)


def _interrupt(number: int, frame: FrameType | None) -> None:
    if not _received and number == signal.SIGHUP:
        _leave_terminal()
    _received.append(number)
    raise Interruption


def _leave_terminal() -> None:
    """Redirect output from the closed terminal, where every write would fail."""
    null = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        if os.isatty(descriptor):
            os.dup2(null, descriptor)


def _report_unraisable(unraisable: "sys.UnraisableHookArgs") -> None:
    """Report an exception that Python ignores, unless `raise_if_interrupted` raises it again."""
    if not issubclass(unraisable.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(unraisable)
