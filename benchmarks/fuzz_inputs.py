"""Commands on damaged rows, model folders, configs, examples and schedules for
benchmarks/fuzz.py.
"""

import copy
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fuzz_cases import TINY, TINY_TRAINING, Case, lines_of, some_rows
from hypothesis import strategies as st

from ulskip_cli.core import config_reference as reference

VALUES = (  # of damaged JSON
    *(
        None,
        True,
        0,
        -1,
        1.5,
        -1e300,
        1e300,
        1e-300,
        math.nan,
        math.inf,
        10**400,
        10**9,
        "",
        "x",
        "7",
        "full",
        "failed",
    ),
    *(
        "../../secret",
        "\ud800",
        "\x1b[31m",
        "x" * 5000,
        [],
        [None],
        [1],
        ["a"],
        [-1],
        [[]],
        {},
        {"a": None},
        {"1": 1},
    ),
)
REPORTED = ("demo", "engines", "skip_adapters", "reproduce")
FORMS = (
    ["--no-plots"],
    ["--html", "--no-plots"],
    ["--compare", "paper", "--no-plots"],
)


def damaged_inputs(model: Path) -> st.SearchStrategy[Case]:
    """Return commands that read damaged rows or files; `model` is the folder of a small model."""
    return st.one_of(
        damaged_rows(),
        damaged_rows(),
        damaged_model(model),
        damaged_config(),
        damaged_examples(),
    )


@st.composite
def damaged_rows(draw: st.DrawFn) -> Case:
    """A command that reads rows with a changed value, or a file of rows with changed bytes."""
    # A copy, because `some_rows` is cached.
    rows: list[Any] = copy.deepcopy(some_rows(draw(st.sampled_from(REPORTED))))
    if draw(st.integers(0, 3)):  # three of four
        rows[0] = draw(changed(rows[0]))
        data = lines_of(rows)
    else:
        data = draw(changed_bytes(lines_of(rows)))
    command = draw(st.sampled_from(("report", "report", "report", "score", "sweep", "export")))
    arguments = {
        "report": ["report", "results/x", *draw(st.sampled_from(FORMS))],
        "score": ["score", "results/x"],
        "sweep": ["sweep", "name=x", "results_dir=results", "ratio=2,3", "--dry-run"],
        "export": [
            "export",
            "model=tiny",
            "--to",
            "out",
            "--format",
            "schedule",
            "--no-check",
        ],
    }[command]
    return Case(tuple(arguments), {"results/x/runs.jsonl": data})


@st.composite
def damaged_model(draw: st.DrawFn, model: Path) -> Case:
    """A command on a copy of a model folder in which one file is changed, or training.json added;
    config.json and training.json are drawn more often.
    """
    names = [
        *sorted(file.name for file in model.iterdir() if file.suffix in (".json", ".safetensors")),
        "training.json",
    ]
    name = draw(st.sampled_from([*names, "config.json", "config.json", "training.json"]))
    source = (
        (model / name).read_bytes()
        if (model / name).is_file()
        else b'{"strategy": "unified", "ratios": [2], "kept_layers": [[0]]}'
    )
    data = draw(damaged(source[: 2**20] if name.endswith(".safetensors") else source))
    command = draw(st.sampled_from(("plan", "plan", "plan", "run", "export", "train")))
    path = "model.path=./model"
    arguments = {
        "plan": ["plan", path],
        "run": ["run", *TINY[:-1], path],  # in place of model=tiny
        "export": ["export", path, "ratio=1.5", "prompt_layers=kept", "--to", "out", "--no-check"],
        "train": ["train", *TINY_TRAINING[:-1], path],
    }[command]
    return Case(tuple(arguments), {f"model/{name}": data}, model=True)


@st.composite
def damaged_config(draw: st.DrawFn) -> Case:
    """A command that lists or chooses a preset of a user's config folder, a damaged copy of one of
    ulskip's presets.
    """
    group = draw(st.sampled_from(reference.ALL_GROUPS))
    file = draw(st.sampled_from(list(reference.group_choices(group).values())))
    data = draw(changed_bytes(file.read_bytes()))
    name = draw(st.sampled_from(("mine", file.stem)))  # a new name, or that of ulskip's preset
    command = draw(st.sampled_from((["plan"], ["sweep", "--dry-run"], ["run", "--print-config"])))
    listing = draw(st.sampled_from((["config", group], ["config", f"{group}={name}"])))
    choosing = (
        [*command, f"{group}={name}"]
        if group in reference.PRIMARY["config"][1]
        else ["train", f"{group}={name}", "--print-config"]
    )
    return Case(
        (*draw(st.sampled_from((listing, choosing))), "--config-dir", "mine"),
        {f"mine/{group}/{name}.yaml": data},
    )


@st.composite
def damaged_examples(draw: st.DrawFn) -> Case:
    """A command that reads a file of examples with changed values or bytes."""
    rows: list[Any] = [
        {"prompt": "der Hund", "reference": "the dog"},
        {"prompt": "die Katze", "reference": "the cat"},
    ]
    data = (
        lines_of(draw(changed(rows)))
        if draw(st.booleans())
        else draw(changed_bytes(lines_of(rows)))
    )
    keys = {
        "jsonl": "task.file=data.jsonl",
        "wmt": "task.dataset=files task.source_file=data.jsonl task.reference_file=data.jsonl",
    }
    task = draw(st.sampled_from(sorted(keys)))
    line = (
        "sweep",
        f"task={task}",
        *keys[task].split(),
        "model=tiny",
        "strategy=unified",
        "ratio=2",
        "batch_size=1",
        "--dry-run",
    )
    return Case(line, {"data.jsonl": data})


@st.composite
def damaged(draw: st.DrawFn, source: bytes) -> bytes:
    """JSON with a changed value, or changed bytes."""
    try:
        values = json.loads(source)
    except ValueError:
        return draw(changed_bytes(source))
    return (
        json.dumps(draw(changed(values))).encode()
        if draw(st.integers(0, 3))
        else draw(changed_bytes(source))
    )


@st.composite
def changed(draw: st.DrawFn, values: Any) -> Any:
    """A copy of JSON values of which one, at any depth, is changed or removed."""
    whole = copy.deepcopy(values)
    paths = list(_paths(whole))
    if not paths:  # no list or object, or an empty one
        return draw(st.sampled_from(VALUES))
    *parents, key = draw(st.sampled_from(paths))
    inner = whole
    for parent in parents:
        inner = inner[parent]
    if draw(st.integers(0, 7)) == 0:
        del inner[key]
    else:
        inner[key] = draw(st.sampled_from(VALUES))
    return whole


def _paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the paths of all values, tuples of keys and indices; of a list, only those of its first
    two elements, because the others are alike.
    """
    if path:
        yield path
    items: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value[:2]))
    for key, inner in items[:60]:
        yield from _paths(inner, (*path, key))


@st.composite
def changed_bytes(draw: st.DrawFn, data: bytes) -> bytes:
    """Bytes that were removed, cut, overwritten, repeated, deeply nested or encoded otherwise."""
    at = draw(st.integers(0, len(data)))
    noise = draw(
        st.sampled_from(
            (
                b"\x00",
                b"\xff\xfe",
                b"\xe9",
                b"{",
                b"]",
                b'"',
                b"\n",
                b": ",
                b"- ",
                b"\t",
                b"&a [*a]",
                b"!!x ",
            )
        )
    )
    kind = draw(st.integers(0, 7))
    made = (
        *(
            b"",
            data[:at],
            data[:at] + noise + data[at:],
            data[:at] + noise + data[at + len(noise) :],
            data + data,
        ),
        *(b"[" * 100_000, data.replace(b"\n", b"\r\n"), b"\xef\xbb\xbf" + data),
    )
    return made[kind]
