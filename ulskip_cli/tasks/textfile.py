"""Reading a user's text file, with one clear line where it cannot be read."""

import gzip
import json
from pathlib import Path
from typing import Any

from ulskip_cli.core.errors import UsageError


def read_text(file: Path) -> str:
    """The text of a file in UTF-8, plain or gzipped.

    Raises:
        UsageError: there is none, or it cannot be read as text.
    """
    try:
        raw = file.read_bytes()
        return (gzip.decompress(raw) if file.suffix == ".gz" else raw).decode("utf-8-sig").replace("\r\n", "\n")
    except FileNotFoundError:
        raise UsageError(f"no file at {file}") from None
    except (OSError, UnicodeDecodeError, EOFError) as error:
        raise UsageError(f"cannot read {file} as UTF-8 text ({error})") from None


def read_lines(file: Path) -> list[str]:
    """The lines of a text file, one segment each.

    Raises:
        UsageError: the file cannot be read, is empty or has an empty line.
    """
    text = read_text(file)
    lines = text.removesuffix("\n").split("\n") if text else []
    if not lines:
        raise UsageError(f"{file} is empty; expected one sentence a line")
    blank = next((i for i, line in enumerate(lines) if not line.strip()), None)
    if blank is not None:
        raise UsageError(f"{file} has an empty line ({blank + 1}); expected one sentence a line")
    return lines


def read_objects(file: Path) -> list[dict[str, Any]]:
    """The JSON objects of a file, one a line, plain or gzipped.

    Raises:
        UsageError: the file cannot be read, is empty, or a line is no JSON object.
    """
    objects = []
    for number, line in enumerate(read_text(file).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise UsageError(f"{file}, line {number}: expected a JSON object, got {line[:60]!r}")
        objects.append(row)
    if not objects:
        raise UsageError(f"{file} is empty; expected one JSON object a line")
    return objects
