"""A row is foreign input: with any one value changed, it is reported or refused by itself."""

import json
import math
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_rows import stored_rows, write_rows

from ulskip_cli.cli.app import invoke
from ulskip_cli.experiments.results import ResultsFolder
from ulskip_cli.report.tables import write_tables

RESULTS = Path(__file__).parents[2] / "results"
FOLDERS = ["demo", "engines", "skip_adapters", "reproduce"]
MOST = 6  # rows of a folder
DELETED = object()
VALUES = [
    *(DELETED, None, True, 0, -1, 1.5, -1e300, 1e300, 1e-300, math.nan, math.inf, 10**400, 10**9),
    *("", "x", "7", "full", "failed", "../../secret", "\ud800", "\x1b[31m", "x" * 5000, "a[/b]"),
    *([], [None], [1], ["a"], [-1], [[]], {}, {"a": None}, {"1": 1}, {"9" * 5000: 1}),
]
FORMATS = [["--no-plots"], ["--html", "--no-plots"], ["--compare", "paper", "--no-plots"]]


def some_rows(folder):
    rows = stored_rows(RESULTS / folder)
    return rows[:: -(-len(rows) // MOST)]


ROWS = {folder: some_rows(folder) for folder in FOLDERS}


def paths(value, path=()):
    """The paths of all values in a row; of a list, of its first two elements."""
    if path:
        yield path
    if isinstance(value, list):
        value = dict(enumerate(value[:2]))
    for key, inner in value.items() if isinstance(value, dict) else ():
        yield from paths(inner, (*path, key))


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


@settings(max_examples=25, derandomize=True)
@given(rows=mutations(), form=st.sampled_from(FORMATS))
def test_a_changed_value_is_reported_or_refused(tmp_path_factory, rows, form):
    folder = write_rows(tmp_path_factory.mktemp("mutated") / "x", rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ULSKIP_DEBUG", "1")  # lets unforeseen exceptions through
        assert invoke(["report", str(folder), *form]) == 0


UNSAFE = "\x1b]0;x\x07\x9b\u202e\n![a](http://b) <img src=x>"


@pytest.mark.parametrize("folder", ["demo", "engines"])
def test_no_name_of_a_row_controls_a_terminal_or_leaves_its_cell(tmp_path, ulskip, folder):
    rows = some_rows(folder)
    keys = ("dataset", "dtype", "engine", "training")
    named = ("model", "strategy", "task", "decoding", "engine", "correction")
    for i, row in enumerate(rows):
        row |= {key: f"{i}{UNSAFE}|{row[key]}" for key in keys if isinstance(row.get(key), str)}
        for key in named:
            section = row["config"].get(key, {})
            row["config"][key] = {**section, "name": f"{i}{UNSAFE}|{section.get('name')}"}
        if "environment" in row:
            row["environment"] |= {"ulskip": UNSAFE, "processor": UNSAFE}
    rows.append({**rows[0], "id": "failed", "status": "failed", "reason": UNSAFE})
    write_rows(tmp_path, rows)
    outputs = []
    for form in (["--html", "--no-plots"], ["--compare", "paper", "--no-plots"]):
        code, out, err = ulskip("report", tmp_path, *form)
        assert code == 0, err
        outputs.append(out)
    write_tables(ResultsFolder(tmp_path))
    written = [file for file in tmp_path.rglob("*.*") if file.suffix in (".md", ".html")]
    unsafe = {char for char in UNSAFE if char != "\n" and not char.isprintable()}
    assert not unsafe & set("".join([*outputs, *(file.read_text() for file in written)]))
    text = (tmp_path / "table.md").read_text()
    assert r"![a]\(http://b) &lt;img" in text and "](" not in text and "<img" not in text
    for table in text.split("\n\n"):
        lines = [line for line in table.splitlines() if line.startswith("|")]
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) <= 1


def test_names_are_neither_markup_nor_formulas(tmp_path, ulskip):
    rows = some_rows("demo")
    for row in rows:
        row["config"]["task"] = {"name": "$\\foo{$"}
        row["config"]["model"] |= {"name": "a[/b]"}
        row |= {"lm_eval": {"acc[/red]": 1.0}}
    folder = write_rows(tmp_path / "x[" / "y]", rows)
    code, out, err = ulskip("report", folder)
    assert code == 0, err
    assert f"written to {folder}/report/" in out.replace("\n", "")
    assert any("$\\foo{$" in file.read_text() for file in (folder / "report").glob("*.svg"))
