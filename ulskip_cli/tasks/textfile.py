"""Reading a user's text file, with one clear line where it cannot be read."""

import gzip
from pathlib import Path

from ulskip_cli.errors import UsageError


def read_text(file: Path) -> str:
    """The text of a file in UTF-8, plain or gzipped.

    Raises:
        UsageError: there is none, or it cannot be read as text.
    """
    try:
        raw = file.read_bytes()
        return (gzip.decompress(raw) if file.suffix == ".gz" else raw).decode("utf-8").replace("\r\n", "\n")
    except FileNotFoundError:
        raise UsageError(f"no file at {file}") from None
    except (OSError, UnicodeDecodeError, EOFError) as error:
        raise UsageError(f"cannot read {file} as UTF-8 text ({error})") from None
