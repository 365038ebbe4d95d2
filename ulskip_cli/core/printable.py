"""Text of other people's files without the characters that control a terminal or the direction of
text.
"""

from typing import Any


def printable(text: str) -> str:
    r"""Return a text on one line, with escapes in place of control characters.

    >>> print(printable("a\n\x1b[31mred"))
    a \x1b[31mred
    """
    if text.isprintable():
        return text
    return "".join(
        character
        if character.isprintable()
        else " "
        if character.isspace()
        else repr(character)[1:-1]
        for character in text
    )


def all_printable(value: Any) -> Any:
    """Return a JSON value in which all texts and keys are printable; keys become texts, as in a
    file.
    """
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {printable(str(key)): all_printable(item) for key, item in value.items()}
    return [all_printable(item) for item in value] if isinstance(value, list) else value
