"""The types of configuration keys, found in the schema and named in plain words."""

import types
from dataclasses import is_dataclass
from typing import Any, Union, get_args, get_origin, get_type_hints

from ulskip_cli.core.errors import UsageError

NAMES = {float: "a number", int: "a whole number", bool: "true or false", str: "a text"}
ELEMENTS = {float: " of numbers", int: " of whole numbers", str: " of texts"}
MAPPING = "texts as keys with values, written {a: 1, b: 2}"


def field_type(schema: type, key: str) -> Any:
    """Return the type of a dotted key of a dataclass, or Any if the dataclass has no such key."""
    found: Any = schema
    for part in key.split("."):
        if not is_dataclass(found):
            return Any
        found = type_hints(found).get(part, Any)
    return found


def type_hints(schema: Any) -> dict[str, Any]:
    """Return the types of a dataclass's fields, or raise UsageError if an annotation cannot be resolved."""
    try:
        return get_type_hints(schema)
    except NameError as error:
        raise UsageError(
            f"expected resolvable annotations in {schema.__module__}.{schema.__qualname__}, got: {error}"
        ) from None


def describe_type(hint: Any) -> str:
    """Name a type in plain words, or return an empty string for Any.

    >>> describe_type(int | None), describe_type(list[str]), describe_type(Any)
    ('a whole number or null', 'a list of texts, written [a,b]', '')
    """
    if get_origin(hint) in (Union, types.UnionType):
        names = ["null" if part is type(None) else describe_type(part) for part in get_args(hint)]
        return " or ".join(name for name in names if name)
    if is_dataclass(hint) or get_origin(hint) is dict or hint is dict:
        return MAPPING
    if get_origin(hint) is list or hint is list:
        element = (*get_args(hint), None)[0]
        return f"a list{ELEMENTS.get(element, '')}, written [a,b]"
    return NAMES.get(hint, "")
