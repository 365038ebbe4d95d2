"""Options: frozen, typed values with help and bounds, and a one-line error for an invalid one.

Every part of a configuration and every JSON file is a class of `Options`. pydantic checks the
values once, when they are read; `parse` turns its first error into one line for the user.
"""

import json
import pkgutil
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import (
    Annotated,
    Any,
    ClassVar,
    Literal,
    NamedTuple,
    Self,
    TypeVar,
    Union,
    get_args,
    get_origin,
)

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from ulskip_cli.core.errors import UnknownKey, UsageError, reason, unknown
from ulskip_cli.core.files import JsonObject
from ulskip_cli.core.fingerprint import code_fingerprint

Parsed = TypeVar("Parsed", bound=BaseModel)

NAMES: Mapping[object, str] = {
    float: "a number",
    int: "a whole number",
    bool: "true or false",
    str: "a text",
    type(None): "null",
}
MAPPING = "texts as keys with values, written {a: 1, b: 2}"
SIGNS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
LENGTHS = {"min_length": "with a length >="}


class Condition(NamedTuple):
    """When the value of an option has an effect."""

    holds: Callable[..., bool]  # of the whole configuration
    otherwise: str  # why it has no effect if that is false


@dataclass(frozen=True)
class Use:
    """The use of an option: the commands that read it, and what it depends on."""

    read_by: frozenset[str] = frozenset()  # commands; empty: those of its section
    condition: Condition | None = None  # None: always used
    changes_results: bool = True

    def __call__(self, schema: JsonObject) -> None:
        """Add nothing to the JSON schema of the field, to which pydantic attaches this object."""


def option(
    default: Any,
    text: str,
    read_by: str = "",
    used_if: Condition | None = None,
    changes_results: bool = True,
    **bounds: Any,
) -> Any:
    """Declare an option with bounds in pydantic's words (ge, gt, le, lt, min_length).

    `read_by` names the commands that read it; by default, those of its section. `used_if` tells
    when its value has an effect. `changes_results=False` keeps it out of
    identities.
    """
    use = Use(frozenset(read_by.split()), used_if, changes_results)
    return Field(default, description=text, json_schema_extra=use, **bounds)


def use_of(field: FieldInfo) -> Use:
    """Return the use of a field."""
    return field.json_schema_extra if isinstance(field.json_schema_extra, Use) else Use()


class Options(BaseModel):
    """Frozen options; unknown keys are errors."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        coerce_numbers_to_str=True,
        defer_build=True,
    )

    @field_validator("*", mode="before")
    @classmethod
    def _prepare(cls, value: object, info: ValidationInfo) -> object:
        """Make a tuple of a single value if the field is one, make the object of a choice, and
        refuse true and false for a number, which pydantic would read as 1 and 0.
        """
        name = str(info.field_name)
        hint = cls.model_fields[name].annotation
        section, allowed = options_in(hint), members(hint)
        if isinstance(value, dict) and section and issubclass(section, Choice):
            return section.chosen(value, name)
        if isinstance(value, str | int | float) and tuple in map(get_origin, allowed):
            return (value,)
        takes_numbers = int in allowed or float in allowed
        if isinstance(value, bool) and takes_numbers and bool not in allowed:
            raise ValueError("a number is expected")
        return value

    def replace(self, **changes: object) -> Self:
        """Return a copy with values that the caller has checked."""
        return self.model_copy(update=changes)

    def plain(self) -> JsonObject:
        """Return every value, JSON-ready."""
        return self.model_dump(mode="json", serialize_as_any=True)

    def non_defaults(
        self, accepts: Callable[[str], bool] | None = None, prefix: str = ""
    ) -> JsonObject:
        """Return the values that are not defaults, JSON-ready.

        `accepts` gets each dotted key and returns False to leave it out; `prefix` is the section of
        this object in those keys, with a dot.
        """
        values: JsonObject = {}
        for name, value in self:
            key = f"{prefix}{name}"
            if accepts and not accepts(key):
                continue
            if isinstance(value, Options):
                inner = value.non_defaults(accepts, f"{key}.")
                if inner:
                    values[name] = inner
                continue
            field = type(self).model_fields.get(name)  # None: a row has keys of another version
            if not field or value != field.get_default(call_default_factory=True):
                values[name] = to_jsonable_python(value)
        return values


class Stored(Options):
    """Keys of a JSON file; others are ignored."""

    model_config = ConfigDict(extra="ignore")


class Choice(Options):
    """Options whose class a preset names: a strategy, task, correction or engine."""

    is_known: ClassVar[bool] = True  # False in a row whose class or options are not installed
    name: str = option("", "name of the preset")

    @classmethod
    def imported(cls, node: Mapping[str, object], group: str) -> type[Self]:
        """Import the class that a preset names in `_target_`; raise UsageError if it is no subclass
        of this one.

        The import of a class runs its module, so callers pass only what YAML files say.
        """
        target, what = str(node.get("_target_")), f"{group}={node.get('name')}"
        try:
            found = pkgutil.resolve_name(target)
        except Exception as error:  # the module is the user's own and may fail in any way
            raise UsageError(
                f"{what}: cannot import {target}, which _target_ names"
                f" ({type(error).__name__}: {reason(error)})"
            ) from None
        if not isinstance(found, type) or not issubclass(found, cls):
            raise UsageError(
                f"{what}: expected _target_ to name a subclass of {cls.__module__}.{cls.__name__},"
                f" got {target}"
            )
        return found

    @classmethod
    def chosen(cls, node: Mapping[str, object], group: str) -> Self:
        """Return the object that the values of a preset describe."""
        values = {key: value for key, value in node.items() if key != "_target_"}
        return parse(cls.imported(node, group), values, f"{group}.")

    @property
    def code_fingerprint(self) -> str:
        """A hash of a user's code of the class; empty for a class of ulskip."""
        return code_fingerprint(type(self))

    def options(self) -> JsonObject:
        """Return the options that are not defaults, without the name."""
        values = super().non_defaults()
        values.pop("name", None)
        return values

    def non_defaults(
        self, accepts: Callable[[str], bool] | None = None, prefix: str = ""
    ) -> JsonObject:
        """Return the changed values, the name, and the class unless ulskip defines it."""
        values, kind = super().non_defaults(accepts, prefix), type(self)
        if not kind.__module__.startswith("ulskip_cli."):
            values["_target_"] = f"{kind.__module__}.{kind.__qualname__}"
        return values


def parse(
    kind: type[Parsed], values: Mapping[str, object], prefix: str = "", file: Path | None = None
) -> Parsed:
    """Return the object that values describe; raise UsageError for the first value that does not
    fit.

    The message shows `prefix` before the key. `file` is the JSON file with the values.
    """
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        raise misfit(kind, error, prefix, file) from None


def load_json(path: Path, what: str) -> JsonObject:
    """Read a JSON object; raise UsageError if there is none."""
    try:
        values = json.loads(path.read_text("utf-8"))
        problem = "" if isinstance(values, dict) else "no JSON object"
    except (OSError, ValueError, RecursionError) as error:
        values, problem = {}, reason(error, True)
    if problem:
        raise UsageError(f"expected {what} in {path}, got {problem}")
    return dict(values)


def describe_type(hint: object, prefix: str = "") -> str:
    """Name a type in plain words; Any gives an empty text. `prefix` is the path of a section, with
    a dot, which the example of its key needs.

    >>> describe_type(int | None), describe_type(tuple[str, ...]), describe_type(Literal["a", "b"])
    ('a whole number or null', 'a list of texts, written [a,b]', 'a or b')
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:  # with a Field, whose metadata has bounds such as Ge(ge=1)
        bounds = [bound for field in arguments[1:] for bound in getattr(field, "metadata", ())]
        limits = [
            f"{sign} {getattr(bound, name):.10g}"
            for bound in bounds
            for name, sign in SIGNS.items()
            if hasattr(bound, name)
        ]
        return " ".join([describe_type(arguments[0], prefix), *limits])
    if origin in (Union, types.UnionType):
        texts = [describe_type(part, prefix) for part in arguments]
        return " or ".join(filter(None, texts))
    if origin is Literal:
        return " or ".join(map(str, arguments))
    if origin is tuple:
        return _describe_list(describe_type(arguments[0]))
    section = options_in(hint)
    if section:
        names = [name for name in section.model_fields if name != "name"]
        return f"a section of keys such as {prefix}{names[0]}" if names else MAPPING
    return MAPPING if origin is dict else NAMES.get(hint, "")


def _describe_list(element: str) -> str:
    """Name a list of elements of a described type."""
    if element in NAMES.values():  # a noun, which has a plural
        return f"a list of {element.removeprefix('a ')}s, written [a,b]"
    each = f", each {element}" if element else ""
    return f"a list{each}, written [a,b]"


def fields_on(kind: type[BaseModel], path: Iterable[str]) -> list[FieldInfo]:
    """Return the fields of the sections on a path of names and of its end, e.g. those of `speed`
    and of `speed.seconds`; fewer if a name is unknown, or a preset decides its class.
    """
    fields = list[FieldInfo]()
    section: type[BaseModel] | None = kind
    for name in path:
        if section is None or name not in section.model_fields:
            break
        fields.append(section.model_fields[name])
        section = options_in(fields[-1].annotation)
    return fields


def has_field(kind: type[BaseModel], key: str) -> bool:
    """Return True if a dotted key has a field; False if a preset decides its class."""
    names = key.split(".")
    return len(fields_on(kind, names)) == len(names)


def choices_of(hint: object) -> tuple[str, ...]:
    """Return the texts that a type allows if it allows only some."""
    parts = [part for part in members(hint) if get_origin(part) is Literal]
    return tuple(str(value) for part in parts for value in get_args(part))


def options_in(hint: object) -> type[BaseModel] | None:
    """Return the class of options in a field, or None for a plain value."""
    parts = (part for part in members(hint) if isinstance(part, type))
    return next((part for part in parts if issubclass(part, BaseModel)), None)


def members(hint: object) -> list[object]:
    """Return the types of a union, or the type itself."""
    if get_origin(hint) is Annotated:
        return members(get_args(hint)[0])
    if get_origin(hint) in (Union, types.UnionType):
        return [member for part in get_args(hint) for member in members(part)]
    return [hint]


def misfit(
    kind: type[BaseModel], error: ValidationError, prefix: str = "", file: Path | None = None
) -> UsageError:
    """Return the line for the first error of pydantic. `prefix` and `file` are those of `parse`;
    without a file, a user set the value as an override and gets advice on overrides.
    """
    first = error.errors(include_url=False)[0]
    path = [str(part) for part in first["loc"]]  # may end with an element of a list, or a type
    fields = fields_on(kind, path)
    field = fields[-1] if fields else None
    section = options_in(field.annotation) if field else kind
    length = len(fields)
    if section and length < len(path):  # which lacks the next key
        field, length = None, length + 1
    key = prefix + ".".join(path[:length])
    group = key.rpartition(".")[0]
    what = f"{key} in {file}" if file else key
    if section and first["type"] == "extra_forbidden":
        known = [f"{group}.{name}".strip(".") for name in section.model_fields if name != "name"]
        advice = "" if file else f"`{f'ulskip config {group}'.strip()}` lists the keys"
        return UnknownKey(str(unknown("key", what, known, advice)), key)
    if first["type"] == "missing":
        advice = f"; add {key}=VALUE" if group and not file else ""
        return UsageError(f"expected a value for {what}, got none{advice}")
    hint = field.annotation if field else None
    allowed = [member for member in members(hint) if member is not type(None)]
    if allowed and all(get_origin(member) is Literal for member in allowed):
        return unknown(what, first["input"], choices_of(hint))
    got = json.dumps(first["input"], default=str, ensure_ascii=False)[:80]
    if field and not file and isinstance(field.default, int | float | str):
        got += f"; the default is {key}={json.dumps(field.default)}".replace('"', "")
    # A bound in a union is one member's, and values of the others are allowed too.
    bounds = first.get("ctx", {}) if len(allowed) == 1 else {}
    return UsageError(f"expected {what} {_expected(hint, bounds, key)}, got {got}")


def _expected(hint: object, bounds: Mapping[str, float], key: str) -> str:
    """Return what is expected of a value after a bound was broken, e.g. {"ge": 1}, or else the
    type. pydantic's `bounds` can have other facts of the error.
    """
    for name, sign in (SIGNS | LENGTHS).items():
        if name in bounds:
            return f"{sign} {bounds[name]:.10g}"
    return f"to be {describe_type(hint, f'{key}.') or 'of the type that its class declares'}"
