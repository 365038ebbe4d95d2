"""Error types of the program, and messages for unknown names."""

import difflib
from collections.abc import Iterable


class UsageError(Exception):
    """The request is invalid; the command prints one line and ends with exit code 2."""


class UnknownKey(UsageError):
    """The chosen config groups have no such key; other choices in the groups may have it."""

    def __init__(self, message: str, key: str) -> None:
        super().__init__(message)
        self.key = key


class NotApplicable(UsageError):
    """The values are valid, but do not go together; a sweep records such a point as not applicable."""


class RunError(Exception):
    """A valid request failed while it ran; the command prints one line and ends with exit code 1."""


class StorageError(RunError):
    """A results folder cannot be written; no further point can be stored, so a sweep stops."""


def unknown(kind: str, got: object, known: Iterable[object]) -> UsageError:
    """Build the error for an unknown name; it suggests the nearest known one.

    >>> str(unknown("strategy", "unifed", ["full", "unified"]))
    "unknown strategy 'unifed'; did you mean 'unified'? known: full, unified"
    """
    names = [str(name) for name in known]
    near = difflib.get_close_matches(str(got), names, n=1, cutoff=0.5)
    hint = f"; did you mean '{near[0]}'?" if near else ";"
    return UsageError(f"unknown {kind} '{got}'{hint} known: {', '.join(names)}")


def require_choice(kind: str, got: str, known: Iterable[str]) -> str:
    """Return `got` if it is one of `known`, else raise UsageError with the nearest name."""
    choices = list(known)
    if got not in choices:
        raise unknown(kind, got, choices)
    return got
