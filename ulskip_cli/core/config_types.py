"""The types of configuration keys, found in the schema and named in plain words."""

import types
from dataclasses import is_dataclass
from typing import Any, Union, get_args, get_origin, get_type_hints

NAMES = {float: "a number", int: "a whole number", bool: "true or false", str: "a text"}
LIST, MAPPING = "a list, written [a,b]", "keys with values, written {a: 1, b: 2}"


def field_type(schema: type, key: str) -> Any:
    """Return the type of a dotted key of a dataclass, or Any if the dataclass has no such key."""
    found: Any = schema
    for part in key.split("."):
        if not is_dataclass(found):
            return Any
        found = get_type_hints(found).get(part, Any)
    return found


def describe_type(hint: Any) -> str:
    """Name a type in plain words, or return an empty string for Any.

    >>> describe_type(int | None), describe_type(list[str]), describe_type(Any)
    ('a whole number or null', 'a list, written [a,b]', '')
    """
    if get_origin(hint) in (Union, types.UnionType):
        names = ["null" if part is type(None) else describe_type(part) for part in get_args(hint)]
        return " or ".join(name for name in names if name)
    if is_dataclass(hint) or get_origin(hint) is dict or hint is dict:
        return MAPPING
    if get_origin(hint) is list or hint is list:
        return LIST
    return NAMES.get(hint, "")
