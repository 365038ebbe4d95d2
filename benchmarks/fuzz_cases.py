"""Random command lines for benchmarks/fuzz.py, made from the config schema and the commands."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import typer
from hypothesis import strategies as st
from typer.core import TyperOption

from ulskip_cli.cli.app import app
from ulskip_cli.core import config_reference as reference
from ulskip_cli.core.config import primary_of

ROOT = Path(__file__).parents[1]
# No absolute path that a user of a machine can write.
HOSTILE = (
    *(
        "",
        " ",
        "null",
        "true",
        "nan",
        "inf",
        "-inf",
        "0",
        "-1",
        "1.5",
        "1e400",
        "99999999999999999999",
        "1_0",
        "0x10",
        "½",
    ),
    *(
        "[]",
        "{}",
        "[1,2]",
        "[[1]]",
        "[null]",
        "{a:1}",
        "{a:{b:[1]}}",
        "{1:2}",
        "x=y",
        "a,b",
        "2,3",
        "range(1,3)",
        "range(1,3,0)",
    ),
    *(
        "choice(1,2)",
        "glob(*)",
        "interval(0,1)",
        "${ratio}",
        "${oc.env:HOME}",
        "${nowhere}",
        "${",
        "???",
        "!!python/name:os",
        "'",
    ),
    *(
        '"',
        "[",
        "}",
        "(",
        "\\",
        "@",
        "-",
        "--",
        "#",
        "é",
        "日本",
        "\x1b[31m",
        "\t",
        "a\nb",
        "\ud800",
        "\x00",
        "..",
        "~",
        "~nouser/x",
    ),
    *(
        "/proc/x",
        "/dev/null",
        "/dev/null/x",
        "a" * 300,
        "a" * 5000,
        "[" * 200,
        "{a:" * 40,
        "model",
        "tiny",
        "full",
        "results",
    ),
)
GOOD = {  # fitting values by a part of a key's type, as `ConfigKey.type` describes it
    "a whole number": ("0", "1", "2", "7"),
    "a number": ("0", "0.5", "1", "2", "3.5"),
    "true or false": ("true", "false"),
    "a text": ("x", "de-en", "tiny", "auto", "results"),
    "null": ("null",),
    "a list": ("[]", "[1,2]", "[0,5,11]", "[a,b]", "[bleu]"),
    "texts as keys": ("{}", "{a:1}", "{source_file:x}"),
}
TINY = (  # the last overrides of a line that decodes or trains, so that it takes seconds
    *(
        "limit=1",
        "max_new_tokens=2",
        "speed.seconds=0",
        "speed.new_tokens=2",
        "calibration.examples=1",
    ),
    *("batch_size=1", "model=tiny"),
)
TINY_TRAINING = (
    "train.max_steps=1",
    "limit=2",
    "train.batch_size=1",
    "train.max_length=32",
    "output=out",
    "model=tiny",
)
# Keys and groups that a line must not set if it decodes, or trains, because it could take minutes.
SLOW = (
    "decoding.num_beams",
    "launcher",
    "experiment",
    "sweep",
    "model",
    "task",
    "strategy",
    "engine",
)
SLOW_TRAINING = (
    "model",
    "task",
    "correction.examples",
    "train.gradient_accumulation_steps",
)


@dataclass(frozen=True)
class Case:
    """A command line, the files of its folder, and True in `model` if the folder also contains a
    small model, model/.
    """

    arguments: tuple[str, ...]
    files: dict[str, bytes] = field(default_factory=dict)
    model: bool = False


def lines() -> st.SearchStrategy[Case]:
    """Return command lines that decode rarely."""
    rare = st.integers(0, 19).flatmap(lambda number: executing() if number == 0 else inspecting())
    return rare.map(
        lambda arguments: Case(
            tuple(arguments), rows_of_results() if arguments[0] in ("report", "score") else {}
        )
    )


@st.composite
def inspecting(draw: st.DrawFn) -> list[str]:
    """A line that computes nothing: of any command with hostile words, of a command that reads
    rows, or of one with overrides and an option that only checks them.
    """
    writing = ("run", "tune", "bench", "train", "export", "lm-eval")
    command = draw(st.sampled_from((*writing, "plan", "plan", "sweep", "sweep", "other", "read")))
    if command == "other":
        command = draw(st.sampled_from([*commands(), "rnu", ""]))  # also names of no command
        runs = command not in ("config", "env")  # which do not know --print-config
        words = draw(
            st.lists(st.one_of(st.sampled_from(HOSTILE), names(), option(command)), max_size=4)
        )
        # An option is a list of one or two words.
        flat = [text for word in words for text in ([word] if isinstance(word, str) else word)]
        return [command, *flat, *(["--print-config"] if runs else [])]
    if command == "read":
        command = draw(st.sampled_from(("report", "score")))
        options = list(chain.from_iterable(draw(st.lists(option(command), max_size=3))))
        return [
            command,
            *draw(st.sampled_from((["results/x"], ["results/x", "results/x"], ["nowhere"], []))),
            *options,
        ]
    primary = primary_of(command)
    words = [
        *draw(st.lists(override(primary), max_size=4)),
        *chain.from_iterable(draw(st.lists(option(command), max_size=1))),
    ]
    ending = {"plan": [], "sweep": ["--dry-run"]}.get(command, ["--print-config"])
    return [command, *draw(st.permutations(words)), *ending]


@st.composite
def executing(draw: st.DrawFn) -> list[str]:
    """A line that decodes, trains or exports for a few seconds."""
    command = draw(st.sampled_from(("run", "run", "run", "train", "export", "export")))
    if command == "train":
        return [
            "train",
            *draw(st.lists(override("train", SLOW_TRAINING), max_size=2)),
            *TINY_TRAINING,
        ]
    words = draw(st.lists(override("config", SLOW), max_size=2))
    if command == "run":
        strategy = draw(
            st.sampled_from(("unified", "top_skip", "full", "early_exit", "skip_decode", "custom"))
        )
        return [
            "run",
            f"strategy={strategy}",
            *words,
            *draw(st.sampled_from(([], ["--json"]))),
            *TINY,
        ]
    form = draw(st.sampled_from(("hf", "gguf", "schedule", "x")))
    options = draw(st.sampled_from(([], ["--json"])))
    return [
        "export",
        *words,
        "prompt_layers=kept",
        "model=tiny",
        "--to",
        "out",
        "--format",
        form,
        "--no-check",
        *options,
    ]


@st.composite
def override(draw: st.DrawFn, primary: str = "config", without: Sequence[str] = ()) -> str:
    """An override of one key, with a value that often does not fit. Keys and groups in `without`
    are left out; if there are none, it can also be any text, or the choice of a group.
    """
    keys, groups = keys_of(primary)
    allowed = [
        key for key in keys if key.name not in without and key.name.partition(".")[0] not in without
    ]
    number = draw(st.integers(0, 11))  # one in twelve is a text, two choose of a group
    if number == 0 and not without:
        return draw(st.one_of(st.sampled_from(HOSTILE), st.text(max_size=20)))
    if number in (1, 2) and not without:
        group = draw(st.sampled_from(groups))
        return f"{group}={draw(st.sampled_from([*reference.group_choices(group), *HOSTILE[:20]]))}"
    key = draw(st.sampled_from(allowed))
    fitting = [
        *key.choices,
        *(value for name, values in GOOD.items() if name in key.type for value in values),
        str(key.default),
    ]
    value = draw(st.sampled_from(fitting if draw(st.booleans()) else HOSTILE))
    prefix = draw(st.sampled_from(("", "", "", "", "", "+", "++", "~")))  # mostly none
    name = key.name + draw(st.sampled_from(("",) * 9 + (".x",)))  # one in ten is no key
    return f"{prefix}{name}={value}"


def option(command: str) -> st.SearchStrategy[list[str]]:
    """Return one option of a command with a value, as words."""
    parameters = (
        [param for param in commands()[command].params if isinstance(param, TyperOption)]
        if command in commands()
        else []
    )
    options: list[st.SearchStrategy[list[str]]] = [
        st.sampled_from([["--x"], ["--json=1"], ["-"], ["--help"]])
    ]
    for param in parameters:
        spelled = st.sampled_from([*param.opts, *param.secondary_opts])
        if param.is_flag:
            options.append(spelled.map(lambda text: [text]))
        else:
            values = [
                "1",
                "2",
                "paper",
                "results",
                "long",
                "bleu",
                *HOSTILE,
            ]
            options.append(st.tuples(spelled, st.sampled_from(values)).map(list))
    return st.one_of(options)


def names() -> st.SearchStrategy[str]:
    """Return names of groups, choices and keys."""
    keys, groups = keys_of("config")
    return st.sampled_from(
        [
            *groups,
            *(key.name for key in keys),
            *(f"strategy={choice}" for choice in reference.group_choices("strategy")),
        ]
    )


@cache
def commands() -> dict[str, Any]:
    """Return the commands by name."""
    return dict(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


@cache
def keys_of(primary: str) -> tuple[list[reference.ConfigKey], tuple[str, ...]]:
    """Return the keys of a primary config (`config`, `tune` or `train`) with those of every choice
    of its groups, and the groups.
    """
    groups = reference.PRIMARY[primary][1]
    keys_of_groups = [
        key
        for group in groups
        for choice in reference.group_choices(group)
        for key in reference.group_keys(group, choice)
    ]
    # Several choices have the same keys.
    keys = {key.name: key for key in [*reference.keys_outside_groups(primary), *keys_of_groups]}
    return list(keys.values()), groups


@cache
def rows_of_results() -> dict[str, bytes]:
    """Return a results folder of few rows."""
    return {"results/x/runs.jsonl": lines_of(some_rows("demo"))}


@cache
def some_rows(folder: str, most: int = 6) -> list[dict[str, Any]]:
    """Return at most `most` rows of a committed folder, evenly spread."""
    stored = (ROOT / "results" / folder / "runs.jsonl").read_text("utf-8").splitlines()
    step = -(-len(stored) // most)  # rounded up
    return [json.loads(line) for line in stored[::step]]


def lines_of(rows: Sequence[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()
