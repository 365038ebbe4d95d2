"""A row is foreign input: with any one value changed, it is reported or refused, and the other rows are reported."""

import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ulskip_cli.cli.app import invoke

RESULTS = Path(__file__).parents[2] / "results"
FOLDERS = ["baselines", "demo", "latency/tiny", "lossless-tiny", "skip_adapters", "reproduce"]
MOST = 6  # rows of a folder
DELETED = object()
VALUES = [
    *(DELETED, None, True, 0, -1, 1.5, -1e300, 1e300, 1e-300, math.nan, math.inf, 10**400, 10**9),
    *("", "x", "7", "full", "failed", "../../secret", "\ud800", "\x1b[31m", "x" * 5000),
    *([], [None], [1], ["a"], [-1], [[]], {}, {"a": None}, {"1": 1}),
]
FORMATS = [["--no-plots"], ["--html", "--no-plots"], ["--format", "csv", "--layout", "long"], ["--format", "latex"]]


def some_rows(folder):
    lines = (RESULTS / folder / "runs.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines[:: -(-len(lines) // MOST)]]


ROWS = {folder: some_rows(folder) for folder in FOLDERS}


def paths(value, path=()):
    """The paths of all values in a row; of a list, of its first two elements."""
    if path:
        yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    for key, one in inner:
        yield from paths(one, (*path, key))


@st.composite
def mutations(draw):
    """Rows of a folder, one of them with one changed or deleted value."""
    rows = json.loads(json.dumps(ROWS[draw(st.sampled_from(FOLDERS))]))
    inner = draw(st.sampled_from(rows))
    *parents, key = draw(st.sampled_from(list(paths(inner))))
    for parent in parents:
        inner = inner[parent]
    value = draw(st.sampled_from(VALUES))
    if value is DELETED:
        del inner[key]
    else:
        inner[key] = value
    return rows


@settings(max_examples=60, derandomize=True)
@given(rows=mutations(), form=st.sampled_from(FORMATS))
def test_a_changed_value_is_reported_or_refused(tmp_path_factory, monkeypatch_session, rows, form):
    folder = tmp_path_factory.mktemp("mutated") / "x"
    folder.mkdir()
    (folder / "runs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert invoke(["report", str(folder), *form]) == 0


@pytest.fixture(scope="module")
def monkeypatch_session():
    """Let unforeseen exceptions through."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ULSKIP_DEBUG", "1")
        yield


def test_a_refused_row_is_named_and_the_rest_is_reported(tmp_path, ulskip):
    rows = some_rows("baselines")
    rows[2]["measured_speedup"] = "fast"
    (tmp_path / "runs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, out, err = ulskip("report", tmp_path, "--format", "csv", "--layout", "long")
    assert (code, len(out.splitlines())) == (0, len(rows))
    assert all(text in err for text in (str(tmp_path / "runs.jsonl"), "line 3", "measured_speedup", '"fast"'))
