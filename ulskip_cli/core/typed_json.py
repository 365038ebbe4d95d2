"""Reading of JSON files into types: a value that does not fit is an error that names the file and the key."""

import json
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from ulskip_cli.core.config_types import describe_type, type_hints
from ulskip_cli.core.errors import UsageError

Parsed = TypeVar("Parsed")


def load_object(path: Path, what: str) -> dict[str, Any]:
    """Read the JSON object in a file; raise UsageError if the file is unreadable or contains no JSON object."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"expected {path} to be {what}, got an error: {' '.join(reason.split())[:120]}") from None
    if not isinstance(found, dict):
        raise UsageError(f"expected {path} to be {what}, a JSON object, got {json.dumps(found)[:60]}")
    return found


def parse(values: Mapping[str, Any], kind: type[Parsed], path: Path, prefix: str = "") -> Parsed:
    """Return the object of a dataclass that a JSON object describes; other keys are ignored.

    Lists become tuples where the dataclass has tuples. Raise UsageError for a missing key or a value of another type.
    """
    hints, found = type_hints(kind), {}
    for one in fields(kind):  # type: ignore[arg-type]
        if one.name in values:
            found[one.name] = _parsed(values[one.name], hints[one.name], path, prefix + one.name)
        elif one.default is MISSING and one.default_factory is MISSING:
            raise UsageError(f"expected the key {prefix}{one.name} in {path}, got none; restore or remove the file")
    return kind(**found)


def _parsed(value: Any, hint: Any, path: Path, key: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        hint = next(one for one in arguments if one is not type(None))
        return _parsed(value, hint, path, key)
    if is_dataclass(hint) and isinstance(value, dict):
        return parse(value, hint, path, f"{key}.")  # type: ignore[arg-type]
    if origin in (tuple, list) and isinstance(value, list):
        return origin(_parsed(one, arguments[0], path, f"{key}[{i}]") for i, one in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {name: _parsed(one, arguments[1], path, f"{key}.{name}") for name, one in value.items()}
    plain = (int, float) if hint is float else hint
    if isinstance(plain, type | tuple) and isinstance(value, plain) and (hint is bool or not isinstance(value, bool)):
        return value
    expected = "a list" if origin is tuple else describe_type(hint) or "of another type"
    raise UsageError(f"expected {key} in {path} to be {expected}, got {json.dumps(value)[:60]}")
