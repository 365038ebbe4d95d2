"""Check what `ulskip tune` reports on tasks that were not used to build it, in new processes
and on other examples.

    python recipes/tune/reproduce.py --data PATH --tasks captions,headlines,copying
    python recipes/tune/reproduce.py --data PATH --tasks code --coder FILE.gguf

PATH holds multi30k/, cnn_dm/ and humaneval/. FILE is Qwen2.5-Coder-0.5B-Instruct, whose answers are
run. Each command says how long it takes; the machine should be idle otherwise. If it is
interrupted, the same command resumes. --page writes the page of the stored results alone.
"""

import argparse
import gzip
import json
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ulskip_cli.core.files import write_atomic
from ulskip_cli.core.schedule import listed
from ulskip_cli.experiments.record import Record
from ulskip_cli.experiments.statistics import QualityShare, shares
from ulskip_cli.report.columns import interval, layers
from ulskip_cli.report.rows import read_records
from ulskip_cli.report.tables import markdown_table, provenance

NAME = "tune_checks"
FOLDER = Path(__file__).parents[2] / "results" / NAME
HEADS = ("task", "wish", "minutes", "use", "speedup", "checked", "quality", "checked")
HEADS += ("examples", "in the interval")
COMMON = {"task": "jsonl", "batch_size": 8, "limit": 100, "choice_examples": 40}


@dataclass(frozen=True)
class Case:
    """A task with a model and a wish."""

    description: str
    wish: str
    keys: Mapping[str, object]
    num_checked: int = 100  # examples on which the result is checked

    @property
    def overrides(self) -> list[str]:
        """The overrides of `ulskip tune`, without its data."""
        return [*(f"{key}={value}" for key, value in {**COMMON, **self.keys}.items()), self.wish]


CASES = {
    "captions": Case(
        "translate image captions from German (Multi30k)",
        "speedup=2",
        {
            "model": "tiny",
            "task.metrics": "[bleu]",
            "task.target_language": "en",
            "max_new_tokens": 48,
        },
    ),
    "headlines": Case(
        "write a headline for the first 80 words of an article (CNN/DM)",
        "speedup=1.2",
        {
            "model": "smollm2-135m",
            "task.metrics": "[rouge]",
            "max_new_tokens": 40,
            "task.first_line": "true",
        },
    ),
    "copying": Case(
        "repeat an English sentence (Multi30k)",
        "quality=0.95",
        {
            "model": "smollm2-135m",
            "task.metrics": "[chrf]",
            "max_new_tokens": 40,
            "task.first_line": "true",
        },
    ),
    "code": Case(
        "write a function (HumanEval)",
        "speedup=1.2",
        {
            "task": "humaneval",
            "task.allow_code": "true",
            "max_new_tokens": 256,
            "batch_size": 1,
            "limit": 40,
        },
        num_checked=40,
    ),
}


def examples(data: Path, name: str) -> Iterator[dict[str, str]]:
    """Yield the examples of a task, one of CASES, as objects of its JSON file. A prompt that occurs
    again is left out, because tuning refuses repeated examples.
    """
    if name == "code":
        problems = gzip.decompress((data / "humaneval/HumanEval.jsonl.gz").read_bytes())
        yield from map(json.loads, problems.splitlines())
        return
    for prompt, reference in dict(texts(data, name)).items():
        yield {"prompt": prompt, "reference": reference}


def texts(data: Path, name: str) -> Iterator[tuple[str, str]]:
    """Yield the prompts and references of a task other than `code`."""
    if name == "captions":
        german, english = (
            (data / f"multi30k/test_2017_flickr.{code}").read_text("utf-8").splitlines()
            for code in ("de", "en")
        )
        for source, reference in zip(german, english, strict=True):
            yield f"{source}\nTranslate German to English:", reference
    elif name == "copying":
        for line in (data / "multi30k/val.en").read_text("utf-8").splitlines():
            yield f"Repeat this sentence and write nothing else: {line}", line
    else:
        with gzip.open(data / "cnn_dm/validation.jsonl.gz", "rt", encoding="utf-8") as lines:
            for row in map(json.loads, lines):
                words = " ".join(row["article"].split()[:80])
                headline = row["highlights"].splitlines()[0]
                yield f"Write a headline for this article: {words}", headline


def prepare(data: Path, work: Path, name: str) -> None:
    """Write the examples of a tuning, at most 400, and those of its check, which share none, into
    NAME-tune.jsonl and NAME-check.jsonl.
    """
    work.mkdir(parents=True, exist_ok=True)
    all_examples, count = list(examples(data, name)), CASES[name].num_checked
    parts = {"check": all_examples[:count], "tune": all_examples[count : count + 400]}
    for use, part in parts.items():
        lines = "".join(json.dumps(example, ensure_ascii=False) + "\n" for example in part)
        write_atomic(work / f"{name}-{use}.jsonl", lines)


def call(*arguments: str) -> Any:
    """Run a command of ulskip in a new process, and return its JSON."""
    print("ulskip", shlex.join(arguments), flush=True)
    done = subprocess.run(
        [sys.executable, "-m", "ulskip_cli", *arguments, "--json"],
        stdout=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        sys.exit(done.returncode)
    return json.loads(done.stdout)


def measure(work: Path, name: str, model: list[str]) -> None:
    """Tune a task, and run what is recommended in a new process on other examples. Store what
    `ulskip tune --json` says without the rows that it tried, their minutes, and the id of the row
    that checks the result. `model` has the overrides of the model if the task names none.
    """
    case, file = CASES[name], f"task.file={work}/{name}-tune.jsonl"
    reported = call("tune", *model, *case.overrides, file, f"name={NAME}")
    others = {
        "task.file": f"{work}/{name}-check.jsonl",
        "name": NAME,
        "limit": case.num_checked,
    }
    use = [word for word in reported["use"] if word.partition("=")[0] not in others]
    seconds = sum(row.get("wall_seconds", 0.0) for row in reported.pop("tried"))
    checked = call("run", *use, *(f"{key}={value}" for key, value in others.items()))["id"]
    values = {"reported": reported, "minutes": round(seconds / 60, 1), "checked": checked}
    text = json.dumps(values, indent=1, ensure_ascii=False)
    write_atomic(FOLDER / "tasks" / f"{name}.json", text + "\n")


def page() -> str:
    """Return the table of all tasks that were measured."""
    rows: list[Record] = []
    lines: list[list[str]] = []
    stored = {row.id: row for row in read_records([FOLDER])}
    for name, case in CASES.items():
        file = FOLDER / "tasks" / f"{name}.json"
        if file.exists():
            task = json.loads(file.read_text("utf-8"))
            reported, checked = stored[task["reported"]["row"]["id"]], stored[task["checked"]]
            rows += [reported, checked]
            lines.append(line(case, task["minutes"], reported, checked))
    note = (
        "`ulskip tune` chose what to use, and reported its speedup and quality on examples that"
        " were not used to choose. Checked: the command that it printed, in a new process on"
        " further `examples`. In the interval: the checked share of the full model's score lies in"
        " the reported interval. Minutes: of what was tried, without the full model."
        " `recipes/tune/reproduce.py` writes this page."
    )
    title = "# Does the result of ulskip tune hold?"
    table = markdown_table(HEADS, lines, len(HEADS))
    return "\n\n".join([title, table, note, provenance(rows)]) + "\n"


def line(case: Case, minutes: float, reported: Record, checked: Record) -> list[str]:
    """Return the cells of what a tuning reported and what was measured again, in the columns
    HEADS.
    """
    skipped = sorted(set(range(reported.num_layers)) - set(reported.kept_layers))
    engine = " ".join(filter(None, [reported.engine, reported.engine_weights]))
    without = f", without {listed(skipped)}" if skipped else f", {reported.label}, {engine}"
    patched = f", {reported.correction.kind} patches" if reported.correction else ""
    before, after = kept(reported), kept(checked)
    assert before.interval.low is not None and before.interval.high is not None
    return [
        f"{case.description}: {reported.model}",
        case.wish,
        f"{minutes:.1f}",
        f"{layers(reported)}{without}{patched}",
        speedup(reported),
        speedup(checked),
        f"{before.title} {before.text()} of {before.full:.1f}",
        f"{after.text()} of {after.full:.1f}",
        str(checked.num_examples),
        "yes" if before.interval.low <= after.share <= before.interval.high else "no",
    ]


def kept(row: Record) -> QualityShare:
    """Return the share of the full model's score that a row keeps."""
    return shares([row])[0]


def speedup(row: Record) -> str:
    """Return the measured speedup of a row with its interval."""
    return f"{row.measured_speedup:.2f}x ({interval(row)})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder of multi30k, cnn_dm and humaneval")
    parser.add_argument("--coder", help="GGUF file, folder or hub id of the model that writes code")
    parser.add_argument("--work", type=Path, default=Path("build/tune"))
    parser.add_argument("--tasks", default=",".join(CASES))
    parser.add_argument(
        "--page", action="store_true", help="write the page of the stored results alone"
    )
    args = parser.parse_args()
    if not args.page:
        if args.data is None:
            parser.error("expected --data PATH with multi30k, cnn_dm and humaneval, or --page")
        if args.coder is None and "code" in args.tasks.split(","):
            parser.error("expected --coder FILE, or --tasks without code")
        for name in args.tasks.split(","):
            if (FOLDER / "tasks" / f"{name}.json").exists():
                continue
            prepare(args.data, args.work, name)
            measure(args.work, name, [f"model.path={args.coder}"] if name == "code" else [])
    write_atomic(FOLDER / "README.md", page())


if __name__ == "__main__":
    main()
