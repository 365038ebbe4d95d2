"""The two ways a command can end badly, and how a misspelt name is answered."""

import difflib
from collections.abc import Iterable


class UsageError(Exception):
    """The request cannot be carried out as written: one line, exit code 2."""


class UnknownKey(UsageError):
    """A key that the chosen groups do not have; another choice may."""

    def __init__(self, message: str, key: str) -> None:
        """Keep which one."""
        super().__init__(message)
        self.key = key


class NotApplicable(UsageError):
    """A strategy does not serve what is asked at this point, as early exit does not serve batches: N/A in a table of many."""


class RunError(Exception):
    """The request was fine and carrying it out failed: one line, exit code 1."""


class StorageError(RunError):
    """A results folder takes no more: nothing else can be kept either, so that many points end at once."""


def unknown(kind: str, got: object, known: Iterable[object]) -> UsageError:
    """An error for a name that is not known, with the nearest one that is.

    >>> str(unknown("strategy", "unifed", ["full", "unified"]))
    "unknown strategy 'unifed'; did you mean 'unified'? known: full, unified"
    """
    names = [str(name) for name in known]
    near = difflib.get_close_matches(str(got), names, n=1, cutoff=0.5)
    hint = f"; did you mean '{near[0]}'?" if near else ";"
    return UsageError(f"unknown {kind} '{got}'{hint} known: {', '.join(names)}")


def require_choice(kind: str, got: str, known: Iterable[str]) -> str:
    """`got` itself if it is one of `known`.

    Raises:
        UsageError: otherwise, naming the nearest spelling.
    """
    choices = list(known)
    if got not in choices:
        raise unknown(kind, got, choices)
    return got
