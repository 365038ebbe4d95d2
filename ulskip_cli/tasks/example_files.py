"""Examples, read from text files, JSON lines and datasets of the Hugging Face Hub."""

import gzip
import json
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

from ulskip_cli.core import environment
from ulskip_cli.core.errors import UsageError, reason
from ulskip_cli.core.files import JsonObject, check_hub_id, user_path
from ulskip_cli.core.task import Example


def examples_from_rows(
    rows: Sequence[JsonObject], source_key: str, reference_key: str | None, origin: str
) -> list[Example]:
    """Convert rows to examples; the id is the row's `id` or index. Raise UsageError if a row lacks
    a text; with a `reference_key` of None there are no references.
    """
    if not rows:
        raise UsageError(f"expected at least one row in {origin}, got none; use other data")
    examples = []
    for index, row in enumerate(rows):
        try:
            source = _text(row, source_key, (str,))
            # An answer can be a number, but a prompt that is one is a mistake.
            reference = _text(row, reference_key, (str, int, float)) if reference_key else ""
        except UsageError as error:
            raise UsageError(f"{origin}, row {index + 1}: {error}") from None
        examples.append(Example(str(row.get("id", index)), source, reference))
    return examples


def _text(row: JsonObject, key: str, types: Sequence[type]) -> str:
    """Return a value as text; raise UsageError if it is missing, blank or of another type."""
    value = row.get(key)
    if type(value) in types and str(value).strip():
        return str(value)
    got = (
        f"only the keys {', '.join(row)[:200]}; set task.prompt_key or task.reference_key to"
        " another key"
    )
    if key in row:
        got = json.dumps(value, default=str)[:80]
    raise UsageError(f"expected a text under {key}, got {got}")


def read_text(file: Path | zipfile.Path) -> str:
    """Read a UTF-8 file, plain or gzipped; raise UsageError if it is missing or unreadable."""
    try:
        packed = file.read_bytes()
        raw = gzip.decompress(packed) if file.suffix == ".gz" else packed
        return raw.decode("utf-8-sig").replace("\r\n", "\n")
    except FileNotFoundError:
        raise UsageError(f"no such file: {file}") from None
    except (OSError, UnicodeDecodeError, EOFError, zlib.error) as error:
        raise UsageError(
            f"expected {file} to be text in UTF-8, got {reason(error, has_path=True)}; convert it,"
            " or use another file"
        ) from None


def read_lines(file: Path) -> list[str]:
    """Read a file with one segment per line; raise UsageError for an empty line."""
    lines = read_text(file).removesuffix("\n").split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            raise UsageError(f"{file}, line {number}: expected a sentence, got an empty line")
    return lines


def read_objects(file: Path | zipfile.Path, texts: Sequence[str] = ()) -> list[JsonObject]:
    """Read a file with one JSON object per line, plain or gzipped; skip blank lines. Raise
    UsageError for a line without texts under the keys `texts`, and for an empty file.
    """
    objects = []
    for number, line in enumerate(read_text(file).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            # fails on NaN and on half of a surrogate pair
            json.dumps(row, ensure_ascii=False, allow_nan=False).encode()
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in texts):
            keys = f" with texts under {' and '.join(texts)}" if texts else ""
            raise UsageError(
                f"{file}, line {number}: expected a whole JSON object{keys} in one line, without"
                f" NaN and in valid Unicode, got {line[:60]!r}"
            )
        objects.append(row)
    if not objects:
        raise UsageError(f"expected one JSON object per line in {file}, got an empty file")
    return objects


def is_dataset(name: str) -> bool:
    """Return True for a hub id (owner/name) or a local folder."""
    return "/" in name or user_path(name, "task.dataset").is_dir()


def load_dataset_rows(
    name: str, subset: str | None, split: str, default_subsets: Sequence[str] = ()
) -> list[JsonObject]:
    """Load a split of a hub dataset or folder. `subset` is by default the first existing one of
    `default_subsets`, or the only one.
    """
    folder = user_path(name, "task.dataset")
    if not folder.is_dir():
        check_hub_id(name, "task.dataset")
    import datasets
    from huggingface_hub import constants

    datasets.disable_progress_bars()
    datasets.utils.logging.set_verbosity_error()
    source = str(folder) if folder.is_dir() else name
    try:
        if not (folder.is_dir() or constants.HF_HUB_OFFLINE):
            environment.check_hub_reachable()  # fails at once; `datasets` would retry
        available = datasets.get_dataset_config_names(source)
        if subset is None:
            subset = next((name for name in default_subsets if name in available), None)
        if subset is None and len(available) > 1:
            raise UsageError(f"set task.subset to one of {', '.join(available)[:300]}")
        if subset is None and available:
            subset = available[0]
        return list(datasets.load_dataset(source, subset, split=split))
    except Exception as error:
        raise UsageError(
            f"cannot read dataset '{name}' ({reason(error)}); check task.split and task.subset, use"
            " a local folder or files, or without a network HF_HUB_OFFLINE=1 if it was read before"
        ) from None
