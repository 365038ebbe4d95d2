import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.options import Options, load_json, option, parse


class Part(Options):
    size: int = option(1, "size", ge=1, le=9)
    weights: tuple[Annotated[float, Field(ge=0)], ...] = option((), "weights")


class Whole(Options):
    needed: str
    share: float = option(0.5, "share", gt=0, lt=1)
    mode: Literal["fast", "slow"] = option("fast", "mode")
    count: Annotated[int, Field(ge=0)] | Literal["auto"] = option(0, "count")
    limit: int | None = option(None, "limit", ge=1)
    on: bool = option(False, "on")
    layers: tuple[int, ...] = option((), "layers")
    names: tuple[str, ...] = option((), "names")
    table: dict[str, Any] | None = option(None, "table")
    part: Part = option(Part(), "part")


NEEDED = {"needed": "x"}
MISFITS = [
    # values, key, expected, got
    ({"shar": 0.2}, "p.shar", "p.share", ""),
    ({"part": {"sise": 2}}, "p.part.sise", "p.part.size", ""),
    ({"needed": None}, "p.needed", "a text", "null"),
    ({"share": True}, "p.share", "a number", "true"),
    ({"share": 0}, "p.share", "> 0", "0"),
    ({"share": 1.0}, "p.share", "< 1", "1.0"),
    ({"share": float("nan")}, "p.share", "a number", "NaN"),
    ({"mode": "fats"}, "p.mode", "fast", "fats"),
    ({"count": -1}, "p.count", "a whole number >= 0 or auto", "-1"),
    ({"count": True}, "p.count", "a whole number", "true"),
    ({"limit": 1.5}, "p.limit", "a whole number or null", "1.5"),
    ({"on": "maybe"}, "p.on", "true or false", "maybe"),
    ({"layers": [0, "x"]}, "p.layers", "a list of whole numbers", "x"),
    ({"names": [["x"]]}, "p.names", "a list of texts", '["x"]'),
    ({"table": [1]}, "p.table", "{a: 1, b: 2}", "[1]"),
    ({"part": 3}, "p.part", "a section of keys such as p.part.size", "3"),
    ({"part": {"weights": [1, -1]}}, "p.part.weights", ">= 0", "-1"),
]
PYDANTIC = ("Input should", "validation error", "errors.pydantic.dev", "Extra inputs")
PYDANTIC += ("type=", "valid ")


def refusal(kind, values, **more):
    with pytest.raises(UsageError) as caught:
        parse(kind, values, **more)
    message = str(caught.value)
    assert "\n" not in message and not any(words in message for words in PYDANTIC), message
    return message


@pytest.mark.parametrize(("values", "key", "expected", "got"), MISFITS, ids=str)
def test_a_misfit_is_one_line_with_its_key_what_was_expected_and_what_came(
    values, key, expected, got
):
    message = refusal(Whole, {**NEEDED, **values}, prefix="p.")
    assert key in message.split(";")[0] and expected in message and got in message


def test_a_missing_key_and_the_file_of_a_misfit_are_named():
    assert re.search(r"\bneeded\b.*none", refusal(Whole, {}))
    for values in ({}, {**NEEDED, "shar": 1}):
        assert "whole.json" in refusal(Whole, values, file=Path("whole.json"))


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
TABLES = lambda inner: st.dictionaries(st.text(max_size=3), inner, max_size=3)  # noqa: E731
JSON = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | TABLES(inner), max_leaves=5)


@given(st.dictionaries(st.sampled_from([*Whole.model_fields, "other"]), JSON, max_size=4))
def test_any_json_value_is_parsed_or_refused_in_one_line(values):
    try:
        whole = parse(Whole, values)
    except UsageError as error:
        assert not any(words in str(error) for words in PYDANTIC)
        assert any(key in str(error) for key in (*values, "needed"))
    else:
        assert parse(Whole, whole.plain()) == whole


def test_a_single_value_is_a_list_of_one():
    assert parse(Whole, {**NEEDED, "layers": 3}).layers == (3,)
    assert parse(Whole, {**NEEDED, "names": "a"}).names == ("a",)
    assert parse(Part, {"weights": 0.5}).weights == (0.5,)


def test_objects_are_frozen_and_tell_what_differs_from_the_defaults():
    whole = parse(Whole, {**NEEDED, "share": 0.5, "part": {"size": 2}})
    assert whole.non_defaults() == {"needed": "x", "part": {"size": 2}}
    assert whole.replace(share=0.25).share == 0.25 and whole.share == 0.5
    with pytest.raises(ValueError, match="frozen"):
        whole.share = 0.1


CONTENTS = [b"", b"{", b"[1]", b"null", b"\xff", b"[" * 100_000, b'{"a":' * 100_000]


@pytest.mark.parametrize("content", CONTENTS, ids=lambda content: content[:5])
def test_a_file_without_a_json_object_is_named(content, tmp_path):
    file = tmp_path / "whole.json"
    file.write_bytes(content)
    with pytest.raises(UsageError, match=str(file)) as caught:
        load_json(file, "a whole")
    assert "\n" not in str(caught.value)
    file.write_text(json.dumps(NEEDED))
    assert load_json(file, "a whole") == NEEDED
