"""Random command lines and damaged files for benchmarks/fuzz.py, made from the config schema, the commands and results/."""

import copy
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import click
import typer
from hypothesis import strategies as st

from ulskip_cli.cli.app import app
from ulskip_cli.core import config_reference as reference

ROOT = Path(__file__).parents[1]
HOSTILE = (
    *("", " ", "null", "true", "nan", "inf", "-inf", "0", "-1", "1.5", "1e400", "99999999999999999999", "1_0", "0x10", "½"),
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
    *("/proc/x", "/dev/null", "/dev/null/x", "a" * 300, "a" * 5000, "[" * 200, "{a:" * 40, "model", "tiny", "full", "results"),
)  # no absolute path that a user of a machine can write
GOOD = {
    "a whole number": ("0", "1", "2", "7"),
    "a number": ("0", "0.5", "1", "2", "3.5"),
    "true or false": ("true", "false"),
    "a text": ("x", "de-en", "tiny", "auto", "results"),
    "null": ("null",),
    "a list": ("[]", "[1,2]", "[0,5,11]", "[a,b]", "[bleu]"),
    "texts as keys": ("{}", "{a:1}", "{source_file:x}"),
}
VALUES = (  # of damaged JSON
    *(None, True, 0, -1, 1.5, -1e300, 1e300, 1e-300, math.nan, math.inf, 10**400, 10**9, "", "x", "7", "full", "failed"),
    *("../../secret", "\ud800", "\x1b[31m", "x" * 5000, [], [None], [1], ["a"], [-1], [[]], {}, {"a": None}, {"1": 1}),
)
TINY = (  # the last overrides of a line that decodes or trains, so that it takes seconds
    *(
        "limit=1",
        "decoding.max_new_tokens=2",
        "speed.pairs=1",
        "speed.warmup=0",
        "speed.new_tokens=2",
        "calibration.examples=1",
    ),
    *("batch_size=1", "model=tiny"),
)
TINY_TRAINING = ("train.max_steps=1", "limit=2", "train.batch_size=1", "train.max_length=32", "output=out", "model=tiny")
SLOW = (
    "ratio_basis",
    "decoding.num_beams",
    "launcher",
    "experiment",
    "sweep",
    "model",
    "task",
    "strategy",
    "engine",
    "tracker",
)
SLOW_TRAINING = ("model", "task", "tracker", "train.patch_examples", "train.gradient_accumulation_steps")
REPORTED = ("baselines", "demo", "latency/tiny", "lossless-tiny", "skip_adapters", "reproduce")
FORMS = (["--no-plots"], ["--html", "--no-plots"], ["--format", "csv", "--layout", "long"], ["--format", "latex"])


@dataclass(frozen=True)
class Case:
    """A command line, the files of its folder, and True in `model` if the folder also contains a small model, model/."""

    arguments: tuple[str, ...]
    files: dict[str, bytes] = field(default_factory=dict)
    model: bool = False


def lines() -> st.SearchStrategy[Case]:
    """Return command lines that decode rarely."""
    rare = st.integers(0, 19).flatmap(lambda number: executing() if number == 0 else inspecting())
    return rare.map(lambda arguments: Case(tuple(arguments), rows_of_results() if arguments[0] in ("report", "score") else {}))


@st.composite
def inspecting(draw: st.DrawFn) -> list[str]:
    """A line that computes nothing."""
    command = draw(
        st.sampled_from(("run", "plan", "plan", "sweep", "sweep", "bench", "train", "export", "lm-eval", "other", "read"))
    )
    if command == "other":
        command = draw(st.sampled_from([*commands(), "rnu", ""]))
        runs = command not in ("config", "models", "tasks", "strategies", "env")
        words = draw(st.lists(st.one_of(st.sampled_from(HOSTILE), names(), option(command)), max_size=4))
        flat = [one for word in words for one in ([word] if isinstance(word, str) else word)]
        return [command, *flat, *(["--print-config"] if runs else [])]
    if command == "read":
        command = draw(st.sampled_from(("report", "score")))
        chosen = list(chain.from_iterable(draw(st.lists(option(command), max_size=3))))
        return [command, *draw(st.sampled_from((["results/x"], ["results/x", "results/x"], ["nowhere"], []))), *chosen]
    primary = "train" if command == "train" else "config"
    words = [*draw(st.lists(override(primary), max_size=4)), *chain.from_iterable(draw(st.lists(option(command), max_size=1)))]
    ending = {"plan": [], "sweep": ["--dry-run"]}.get(command, ["--print-config"])
    return [command, *draw(st.permutations(words)), *ending]


@st.composite
def executing(draw: st.DrawFn) -> list[str]:
    """A line that decodes, trains or exports for a few seconds."""
    command = draw(st.sampled_from(("run", "run", "run", "train", "export", "export")))
    if command == "train":
        return ["train", *draw(st.lists(override("train", SLOW_TRAINING), max_size=2)), *TINY_TRAINING]
    words = draw(st.lists(override("config", SLOW), max_size=2))
    if command == "run":
        strategy = draw(st.sampled_from(("unified", "top_skip", "full", "early_exit", "skip_decode", "custom")))
        return ["run", f"strategy={strategy}", *words, *draw(st.sampled_from(([], ["--json"], ["--profile"]))), *TINY]
    form = draw(st.sampled_from(("hf", "gguf", "mergekit", "schedule", "x")))
    options = draw(st.sampled_from(([], ["--shard-size", "1MB"], ["--shard-size", "x"], ["--json"])))
    return ["export", *words, "prompt_layers=kept", "model=tiny", "--to", "out", "--format", form, "--no-check", *options]


@st.composite
def override(draw: st.DrawFn, primary: str = "config", without: Sequence[str] = ()) -> str:
    """An override of one key, with a value that often does not fit."""
    keys, groups = keys_of(primary)
    kept = [key for key in keys if key.name not in without and key.name.partition(".")[0] not in without]
    kind = draw(st.integers(0, 11))
    if kind == 0 and not without:
        return draw(st.one_of(st.sampled_from(HOSTILE), st.text(max_size=20)))
    if kind in (1, 2) and not without:
        group = draw(st.sampled_from(groups))
        return f"{group}={draw(st.sampled_from([*reference.group_choices(group), *HOSTILE[:20]]))}"
    key = draw(st.sampled_from(kept))
    good = [*key.choices, *(value for name, values in GOOD.items() if name in key.type for value in values), str(key.default)]
    value = draw(st.sampled_from(good if draw(st.booleans()) else HOSTILE))
    prefix, name = (
        draw(st.sampled_from(("", "", "", "", "", "+", "++", "~"))),
        key.name + draw(st.sampled_from(("",) * 9 + (".x",))),
    )
    return f"{prefix}{name}={value}"


def option(command: str) -> st.SearchStrategy[list[str]]:
    """Return one option of a command with a value, as words."""
    parameters = [one for one in commands()[command].params if isinstance(one, click.Option)] if command in commands() else []
    found: list[st.SearchStrategy[list[str]]] = [st.sampled_from([["--x"], ["--json=1"], ["-"], ["--help"]])]
    for one in parameters:
        spelled = st.sampled_from([*one.opts, *one.secondary_opts])
        if one.is_flag:
            found.append(spelled.map(lambda text: [text]))
        else:
            values = [*getattr(one.type, "choices", ()), "1", "2", "paper", "results", "csv", "long", "bleu", *HOSTILE]
            found.append(st.tuples(spelled, st.sampled_from(values)).map(list))
    return st.one_of(found)


def names() -> st.SearchStrategy[str]:
    """Return names of groups, choices and keys."""
    keys, groups = keys_of("config")
    return st.sampled_from(
        [*groups, *(key.name for key in keys), *(f"strategy={one}" for one in reference.group_choices("strategy"))]
    )


@cache
def commands() -> dict[str, Any]:
    """Return the commands by name."""
    return dict(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


@cache
def keys_of(primary: str) -> tuple[list[reference.ConfigKey], tuple[str, ...]]:
    """Return the keys of a primary config, those of every choice of its groups, and the groups."""
    groups = reference.PRIMARY[primary][1]
    inner = [
        key for group in groups for choice in reference.group_choices(group) for key in reference.group_keys(group, choice)
    ]
    keys = {key.name: key for key in [*reference.top_level_keys(primary), *inner]}
    return list(keys.values()), groups


@cache
def rows_of_results() -> dict[str, bytes]:
    """Return a results folder of few rows."""
    return {"results/x/runs.jsonl": _lines_of(some_rows("demo"))}


@cache
def some_rows(folder: str, most: int = 6) -> list[dict[str, Any]]:
    """Return some rows of a committed folder."""
    found = (ROOT / "results" / folder / "runs.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in found[:: -(-len(found) // most)]]


def _lines_of(rows: Sequence[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def damaged_inputs(model: Path) -> st.SearchStrategy[Case]:
    """Return commands that read damaged rows or files; `model` is a small model with its schedule beside it."""
    return st.one_of(
        damaged_rows(), damaged_rows(), damaged_model(model), damaged_config(), damaged_examples(), damaged_schedule(model)
    )


@st.composite
def damaged_rows(draw: st.DrawFn) -> Case:
    """Rows with a changed value, or a file of rows with changed bytes."""
    rows: list[Any] = copy.deepcopy(some_rows(draw(st.sampled_from(REPORTED))))
    if draw(st.integers(0, 3)):
        rows[0] = draw(changed(rows[0]))
        data = _lines_of(rows)
    else:
        data = draw(changed_bytes(_lines_of(rows)))
    command = draw(st.sampled_from(("report", "report", "report", "score", "sweep", "export")))
    arguments = {
        "report": ["report", "results/x", *draw(st.sampled_from(FORMS))],
        "score": ["score", "results/x"],
        "sweep": ["sweep", "name=x", "results_dir=results", "ratio=2,3", "--dry-run"],
        "export": ["export", "model=tiny", "--to", "out", "--format", "mergekit", "--no-check", "--results", "results/x"],
    }[command]
    return Case(tuple(arguments), {"results/x/runs.jsonl": data})


@st.composite
def damaged_model(draw: st.DrawFn, model: Path) -> Case:
    """A model folder in which one file is changed."""
    names = [*sorted(file.name for file in model.iterdir() if file.suffix in (".json", ".safetensors")), "training.json"]
    name = draw(st.sampled_from([*names, "config.json", "config.json", "training.json"]))
    source = (
        (model / name).read_bytes()
        if (model / name).is_file()
        else b'{"strategy": "unified", "ratios": [2], "kept_layers": [[0]]}'
    )
    data = draw(damaged(source[: 2**20] if name.endswith(".safetensors") else source))
    command = draw(st.sampled_from(("plan", "plan", "plan", "run", "export", "train")))
    own = ["model.path=./model"]
    arguments = {
        "plan": ["plan", *own],
        "run": ["run", *TINY[:-1], *own],
        "export": ["export", *own, "ratio=1.5", "prompt_layers=kept", "--to", "out", "--no-check"],
        "train": ["train", *TINY_TRAINING[:-1], *own],
    }[command]
    return Case(tuple(arguments), {f"model/{name}": data}, model=True)


@st.composite
def damaged_config(draw: st.DrawFn) -> Case:
    """A user's config folder with a changed file."""
    group = draw(st.sampled_from(reference.ALL_GROUPS))
    file = draw(st.sampled_from(list(reference.group_choices(group).values())))
    data = draw(changed_bytes(file.read_bytes()))
    name = draw(st.sampled_from(("mine", file.stem)))
    command = draw(st.sampled_from((["plan"], ["sweep", "--dry-run"], ["run", "--print-config"])))
    listing = draw(st.sampled_from((["strategies"], ["tasks"], ["models"], ["config", group], ["config", f"{group}={name}"])))
    choosing = [*command, f"{group}={name}"] if group in reference.GROUPS else ["train", f"{group}={name}", "--print-config"]
    return Case((*draw(st.sampled_from((listing, choosing))), "--config-dir", "mine"), {f"mine/{group}/{name}.yaml": data})


@st.composite
def damaged_examples(draw: st.DrawFn) -> Case:
    """A file of examples with changed values or bytes."""
    rows: list[Any] = [{"prompt": "der Hund", "reference": "the dog"}, {"prompt": "die Katze", "reference": "the cat"}]
    data = _lines_of(draw(changed(rows))) if draw(st.booleans()) else draw(changed_bytes(_lines_of(rows)))
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
def damaged_schedule(draw: st.DrawFn, model: Path) -> Case:
    """A changed schedule file."""
    data = draw(damaged((model.parent / "schedule.json").read_bytes()))
    return Case(("plan", "strategy=custom", "strategy.file=schedule.json", "model=tiny"), {"schedule.json": data})


@st.composite
def damaged(draw: st.DrawFn, source: bytes) -> bytes:
    """JSON with a changed value, or changed bytes."""
    try:
        values = json.loads(source)
    except ValueError:
        return draw(changed_bytes(source))
    return json.dumps(draw(changed(values))).encode() if draw(st.integers(0, 3)) else draw(changed_bytes(source))


@st.composite
def changed(draw: st.DrawFn, values: Any) -> Any:
    """A copy of JSON values of which one is changed or removed."""
    whole = copy.deepcopy(values)
    *parents, key = draw(st.sampled_from(list(_paths(whole)) or [()])) or (None,)
    if key is None:
        return draw(st.sampled_from(VALUES))
    inner = whole
    for parent in parents:
        inner = inner[parent]
    if draw(st.integers(0, 7)) == 0:
        del inner[key]
    else:
        inner[key] = draw(st.sampled_from(VALUES))
    return whole


def _paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the paths of all values; of a list, of its first two elements."""
    if path:
        yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    for key, one in list(inner)[:60]:
        yield from _paths(one, (*path, key))


@st.composite
def changed_bytes(draw: st.DrawFn, data: bytes) -> bytes:
    """Bytes that were cut, overwritten, repeated, deeply nested or encoded otherwise."""
    at = draw(st.integers(0, len(data)))
    noise = draw(
        st.sampled_from((b"\x00", b"\xff\xfe", b"\xe9", b"{", b"]", b'"', b"\n", b": ", b"- ", b"\t", b"&a [*a]", b"!!x "))
    )
    kind = draw(st.integers(0, 7))
    made = (
        *(b"", data[:at], data[:at] + noise + data[at:], data[:at] + noise + data[at + len(noise) :], data + data),
        *(b"[" * 100_000, data.replace(b"\n", b"\r\n"), b"\xef\xbb\xbf" + data),
    )
    return made[kind]
