"""Error types of the program, and messages for unknown names."""

import difflib
from collections.abc import Iterable

_MAX_WORD, _MAX_LINE = (
    120,
    600,
)  # letters of a cut word and line; one of at most twice as many stays
# more known names than this are not listed in an error if it names a command that lists them
MAX_LISTED = 10
MAX_REASON = 200  # letters of another library's error


class UsageError(Exception):
    """The request is invalid; the command prints one line and ends with exit code 2."""


class UnknownKey(UsageError):
    """The chosen config groups do not have `key`; other choices may have it."""

    def __init__(self, message: str, key: str) -> None:
        super().__init__(message)
        self.key = key


class NotApplicable(UsageError):
    """The values are valid, but exclude one another; a sweep records such a point as not
    applicable.
    """


class RunError(Exception):
    """A valid request failed; the command prints one line and ends with exit code 1."""


class StorageError(RunError):
    """A results folder cannot be written, so a sweep stops."""


def one_line(message: str) -> str:
    r"""Return a message on one line without control characters, with long words and a long end cut.

    >>> one_line("got 'a\nb\x1b[31m'")
    "got 'a b?[31m'"
    """
    words = [
        f"{word[:_MAX_WORD]}..." if len(word) > 2 * _MAX_WORD else word for word in message.split()
    ]
    line = "".join(letter if letter.isprintable() else "?" for letter in " ".join(words))
    return f"{line[:_MAX_LINE]}..." if len(line) > 2 * _MAX_LINE else line


def unknown(kind: str, got: object, known: Iterable[object], advice: str = "") -> UsageError:
    """Build the error for an unknown name of a `kind`; it suggests known names that begin in the
    same way, or else the most similar one, and ends with `advice`.

    >>> str(unknown("spacing", "evn", ["even", "reference"]))
    "unknown spacing 'evn'; did you mean 'even'? known: even, reference"
    """
    got = str(got)[:80]
    names = [str(name) for name in known]
    # Keys of one section are compared without it: `decoding.` alone makes no two keys similar.
    section = "".join(got.rpartition(".")[:2])
    if not all(name.startswith(section) for name in names):
        section = ""
    inner_names = [name.removeprefix(section) for name in names]
    word = got.removeprefix(section).lower()
    near = [name for name in inner_names if word and name.lower().startswith(word)]
    near = near or difflib.get_close_matches(word, inner_names, 1)
    message = f"unknown {kind} '{got}';"
    if near:
        meant = [f"'{section}{name}'" for name in near[:3]]
        message += f" did you mean {' or '.join(meant)}?"
    if not advice:
        return UsageError(f"{message} known: {', '.join(names)}")
    if 0 < len(names) <= MAX_LISTED:
        message += f" known: {', '.join(names)};"
    return UsageError(f"{message} {advice}")


def reason(error: BaseException, has_path: bool = False) -> str:
    r"""Return another library's error on one line, or the name of its type; `has_path` leaves out a
    file's path, which the message names already.

    >>> reason(ValueError("bad\nvalue")), reason(OSError(2, "No such file")), reason(KeyError())
    ('bad value', 'No such file', 'KeyError')
    >>> reason(OSError(2, "No such file", "a")), reason(OSError(2, "No such file", "a"), True)
    ('No such file: a', 'No such file')
    >>> reason(ValueError("A sentence. " + "cut " * 99))
    'A sentence'
    """
    text = str(getattr(error, "strerror", None) or error)
    if not has_path and isinstance(error, OSError) and error.filename is not None:
        text += f": {error.filename}"
    text = " ".join(text.split())
    if len(text) > MAX_REASON:  # whole sentences, if there are any
        text = text[:MAX_REASON].rpartition(". ")[0] or text[:MAX_REASON]
    return text or type(error).__name__


def require_choice(kind: str, got: str, known: Iterable[str], advice: str = "") -> str:
    """Return `got` if it is one of `known`; otherwise raise the error of `unknown`."""
    choices = list(known)
    if got not in choices:
        raise unknown(kind, got, choices, advice)
    return got
