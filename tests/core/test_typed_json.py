import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from ulskip_cli.core.typed_json import load_object, parse

from ulskip_cli.core.errors import UsageError


@dataclass(frozen=True)
class Part:
    first: int


@dataclass(frozen=True)
class Whole:
    name: str
    share: float
    layers: tuple[int, ...]
    parts: dict[str, tuple[Part, ...]] | None = None
    is_new: bool = False


FILE = Path("whole.json")
VALUES = {"name": "a", "share": 1, "layers": [0, 2], "parts": {"2": [{"first": 3}]}, "unknown": None}


def test_values_become_an_object_of_their_types():
    assert parse(VALUES, Whole, FILE) == Whole("a", 1, (0, 2), {"2": (Part(3),)})
    assert parse({**VALUES, "parts": None}, Whole, FILE).parts is None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("name", value) for value in (None, 5, ["a"])),
        *(("share", value) for value in (None, "1", True)),
        *(("layers", value) for value in (None, 3, "02", {"0": 1})),
        ("layers[1]", [0, "2"]),
        ("layers[0]", [True]),
        *(("parts", value) for value in ([1], "x")),
        ("parts.2", {"2": 3}),
        ("parts.2[0].first", {"2": [{"first": None}]}),
        ("parts.2[0].first", {"2": [{}]}),
        ("is_new", 1),
    ],
)
def test_a_value_of_another_type_is_named_with_its_file(key, value):
    with pytest.raises(UsageError) as caught:
        parse({**VALUES, key.split("[")[0].split(".")[0]: value}, Whole, FILE)
    assert f" {key} " in str(caught.value) and "whole.json" in str(caught.value)


def test_a_missing_key_is_named():
    with pytest.raises(UsageError, match=r"layers.*whole\.json"):
        parse({"name": "a", "share": 1}, Whole, FILE)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"null", b"\xff", b"[" * 100_000, b'{"a":' * 100_000])
def test_a_file_without_a_json_object_is_named(content, tmp_path):
    file = tmp_path / "whole.json"
    file.write_bytes(content)
    with pytest.raises(UsageError, match=str(file)) as caught:
        load_object(file, "a whole")
    assert "\n" not in str(caught.value)
    file.write_text(json.dumps(VALUES))
    assert load_object(file, "a whole") == VALUES
