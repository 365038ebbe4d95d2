"""Types of the values of a row, and their check. A row is foreign input: a nested object is checked down to its numbers."""

import json
import math
import re
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, NotRequired, TypedDict

from ulskip_cli.core.errors import UsageError


@dataclass(frozen=True)
class Bounds:
    """The range of a number, ends included; `above` is an excluded lower end. NaN is outside of every range."""

    low: float = -math.inf
    high: float = math.inf
    above: float = -math.inf

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high and (value > self.above or self.above == -math.inf)

    def __str__(self) -> str:
        low = f"above {self.above:g}" if self.above > -math.inf else f"from {self.low:g}"
        return f"{low} to {self.high:g}"


@dataclass(frozen=True)
class NotEmpty:
    """A list of at least one element."""


@dataclass(frozen=True)
class OrEmpty:
    """An object without keys, or with the keys of `kind`."""

    kind: type


@dataclass(frozen=True)
class NumberedKeys:
    """An object whose keys are whole numbers."""


_BOUNDS = {float: Bounds(-1e30, 1e30), int: Bounds(-(2**64), 2**64)}  # of numbers without bounds of their own
AnyFloat = Annotated[float, Bounds()]
Count = Annotated[int, Bounds(0, 1e18)]
NumLayers = Annotated[int, Bounds(1, 1e5)]
Positive = Annotated[float, Bounds(above=0, high=1e30)]
Rate = Annotated[float, Bounds(0, 1e30)]
Speedup = Annotated[float, Bounds(above=0, high=1e6)]
Share = Annotated[float, Bounds(0, 1)]
Layers = Annotated[list[Count], NotEmpty()]


class StageValues(TypedDict):
    """A later stage of a schedule."""

    first_step: Count
    kept_layers: NotRequired[Layers]


class ComparedValues(TypedDict):
    """A score compared with the full model's score."""

    full: float
    delta: float
    delta_low: float
    delta_high: float
    p_value: Share | None


class SideValues(TypedDict):
    """The raw seconds of one side of timed pairs."""

    decode_seconds: Annotated[list[Positive], NotEmpty()]
    decoded_tokens: NotRequired[list[Count]]
    generated_tokens: NotRequired[list[Count]]


class PairValues(TypedDict):
    """Both sides of timed pairs, or the strategy's alone."""

    full: NotRequired[SideValues]
    strategy: SideValues


class LimitValues(TypedDict):
    """The rate at which the machine reads memory."""

    bytes_per_second: Positive


class FullValues(TypedDict):
    """The full model's side of a benchmark."""

    decode_tokens_per_second: Positive
    total_tokens_per_second: Positive
    bandwidth_share: float | None


class PatchValues(TypedDict):
    """The patches of a schedule."""

    kind: str
    rank: Count | None


class AdapterValues(TypedDict):
    """The skip adapter of a schedule."""

    path: str


class PackageVersions(TypedDict):
    """The versions of packages that every report names."""

    torch: str
    transformers: str


class EnvironmentValues(TypedDict):
    """The code and the machine of a run."""

    ulskip: str
    git_commit: NotRequired[str | None]
    git_dirty: NotRequired[bool | None]
    packages: PackageVersions
    accelerator: str | None
    processor: str | None
    threads: Count
    wait_policy: NotRequired[str | None]
    instruction_set: str | None


class CorrectionValues(TypedDict, total=False):
    """The options of the correction that reports read."""

    path: list[str] | None


class TaskValues(TypedDict, total=False):
    """The options of the task that reports read."""

    metrics: list[str] | None
    target_language: str | None
    tokenize: str | None
    stemmer: bool


class ConfigValues(TypedDict, total=False):
    """The parts of a configuration that reports read."""

    correction: CorrectionValues
    task: TaskValues


def checked(key: str, value: Any, hint: Any) -> Any:
    """Return a value that fits its annotation; otherwise raise UsageError with the path of the key that does not fit."""
    for path, expected, got in _problems(key, value, hint):
        raise UsageError(f"expected the key {path} of a row to be {expected}, got {json.dumps(got, default=str)[:60]}")
    return value


def accepts_none(hint: Any) -> bool:
    """Return True for an annotation that includes None."""
    return hint is Any or type(None) in _alternatives(hint)


Problem = tuple[str, str, Any]  # the path of a key, the expected value, and the value


def _problems(path: str, value: Any, hint: Any) -> Iterator[Problem]:
    base, *rules = typing.get_args(hint) if typing.get_origin(hint) is Annotated else (hint,)
    alternatives = _alternatives(base)
    if base is Any:
        return
    if len(alternatives) > 1:
        yield from _problems_of_alternatives(path, value, alternatives)
        return
    found = list(_problems_of_type(path, value, base))
    yield from found
    if not found:
        for rule in rules or [_BOUNDS.get(base)]:
            yield from _problems_of_rule(path, value, rule)


def _problems_of_alternatives(path: str, value: Any, alternatives: Sequence[Any]) -> Iterator[Problem]:
    found = [list(_problems(path, value, one)) for one in alternatives]
    if not all(found):
        return
    inner = next((own[0] for own in found if own[0][0] != path), None)  # the alternative that fits best
    yield inner or (path, " or ".join(own[0][1] for own in found), value)


def _problems_of_type(path: str, value: Any, base: Any) -> Iterator[Problem]:
    plain: Any = typing.get_origin(base) or (dict if typing.is_typeddict(base) else base)
    accepted: Any = (float, int) if plain is float else plain
    if not isinstance(value, accepted) or (isinstance(value, bool) and plain is not bool):
        yield path, "null" if plain is types.NoneType else plain.__name__, value
    elif typing.is_typeddict(base):
        for key, hint in hints_of(base).items():
            if key in value:
                yield from _problems(f"{path}.{key}", value[key], hint)
            elif key in base.__required_keys__:
                yield f"{path}.{key}", "given", None
    elif plain is list:
        for i, one in enumerate(value):
            yield from _problems(f"{path}[{i}]", one, *typing.get_args(base))
    elif plain is dict:
        for key, one in value.items():
            yield from _problems(f"{path}.{key}", one, typing.get_args(base)[1])


def _problems_of_rule(path: str, value: Any, rule: Any) -> Iterator[Problem]:
    if isinstance(rule, Bounds):
        if value not in rule:
            yield path, str(rule), value
    elif isinstance(rule, NotEmpty):
        if not value:
            yield path, "a list of at least one value", value
    elif isinstance(rule, NumberedKeys):
        yield from (
            (f"{path}.{key}", "under a number", one) for key, one in value.items() if not re.fullmatch("[0-9]{1,5}", key)
        )
    elif isinstance(rule, OrEmpty):
        yield from _problems(path, value, rule.kind) if value else ()
    elif rule is not None:
        yield from _problems(path, value, rule)


@cache
def hints_of(kind: type) -> dict[str, Any]:
    """Return the annotations of a dataclass or TypedDict."""
    return {
        key: typing.get_args(hint)[0] if typing.get_origin(hint) is NotRequired else hint
        for key, hint in typing.get_type_hints(kind, include_extras=True).items()
    }


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)
