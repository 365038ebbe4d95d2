"""Check what `ulskip tune` reports on tasks that were not used to build it, in new processes
and on other examples.

    python recipes/tune/reproduce.py --data PATH --tasks captions,headlines,copying

PATH holds multi30k/ and cnn_dm/. The recipe takes about half an hour on two cores, which should
be idle otherwise. If it is interrupted, the same command resumes. --page writes the page of the
stored results alone.
"""

import argparse
import gzip
import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ulskip_cli.core.files import write_atomic
from ulskip_cli.core.schedule import listed
from ulskip_cli.experiments.record import Record
from ulskip_cli.report.rows import read_records
from ulskip_cli.report.tables import provenance
from ulskip_cli.tuning.result import judge

NAME = "tune_checks"
FOLDER = Path("results") / NAME
HEADS = ("task", "wish", "layers", "speedup", "checked", "quality", "checked", "in the interval")
CHECKED = 100  # examples on which the result is checked
Pair = tuple[str, str]


@dataclass(frozen=True)
class Case:
    """A task with a model and a wish."""

    description: str
    overrides: tuple[str, ...]


CASES = {
    "captions": Case(
        "translate image captions from German (Multi30k)",
        (
            "model=tiny",
            "task.metrics=[bleu]",
            "task.target_language=en",
            "task.max_new_tokens=48",
            "speedup=2",
        ),
    ),
    "headlines": Case(
        "write a headline for the first 80 words of an article (CNN/DM)",
        (
            "model=smollm2-135m",
            "task.metrics=[rouge]",
            "task.max_new_tokens=40",
            "task.first_line=true",
            "speedup=1.2",
        ),
    ),
    "copying": Case(
        "repeat an English sentence (Multi30k)",
        (
            "model=smollm2-135m",
            "task.metrics=[chrf]",
            "task.max_new_tokens=40",
            "task.first_line=true",
            "quality=0.95",
        ),
    ),
}


def examples(data: Path, name: str) -> Iterator[Pair]:
    """Yield the prompts and references of a task."""
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
    """Write the examples of a tuning and those of its check, which share none."""
    work.mkdir(parents=True, exist_ok=True)
    pairs = [
        {"prompt": prompt, "reference": reference}
        for prompt, reference in dict(examples(data, name)).items()
    ]
    for kind, part in (("check", pairs[:CHECKED]), ("tune", pairs[CHECKED : CHECKED + 400])):
        lines = "".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in part)
        write_atomic(work / f"{name}-{kind}.jsonl", lines)


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


def measure(work: Path, name: str, limit: int, budget: float) -> None:
    """Tune a task, and run the result in a new process on other examples."""
    reported = call(
        *("tune", *CASES[name].overrides, "task=jsonl", f"task.file={work}/{name}-tune.jsonl"),
        *("batch_size=8", f"limit={limit}", "choice_examples=40", f"budget={budget:g}"),
        f"name={NAME}",
    )
    others = [f"task.file={work}/{name}-check.jsonl", f"name={NAME}", f"limit={CHECKED}"]
    row = call("run", *reported["run"], *others)
    text = json.dumps({"reported": reported, "checked": row["id"]}, indent=1, ensure_ascii=False)
    write_atomic(FOLDER / "tasks" / f"{name}.json", text + "\n")


def page() -> str:
    """Return the table of all tasks that were measured."""
    rows: list[Record] = []
    lines = [f"| {' | '.join(HEADS)} |", "| --- " * len(HEADS) + "|"]
    stored = {row.id: row for row in read_records([FOLDER])}
    for name, case in CASES.items():
        file = FOLDER / "tasks" / f"{name}.json"
        if not file.exists():
            continue
        task = json.loads(file.read_text("utf-8"))
        reported, checked = stored[task["reported"]["row"]["id"]], stored[task["checked"]]
        rows += [reported, checked]
        skipped = sorted(set(range(reported.num_layers)) - set(reported.kept_layers))
        before, after = judge(reported, 1.0), judge(checked, 1.0)
        assert before.low is not None and before.high is not None
        cells = [
            f"{case.description}: {reported.model}",
            case.overrides[-1],
            f"{len(reported.kept_layers)}/{reported.num_layers}, without {listed(skipped)}",
            speedup(reported),
            speedup(checked),
            f"{before.title} {before.text()} of {before.full:.1f}",
            f"{after.text()} of {after.full:.1f}",
            "yes" if before.low <= after.share <= before.high else "no",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    note = (
        "`ulskip tune` chose the layers and reported the speedup and the quality on examples that"
        " were not used to choose. Checked: the command that it printed, in a new process on"
        f" {CHECKED} further examples. In the interval: the checked share of the full model's score"
        " lies in the reported interval. `recipes/tune/reproduce.py` writes this page."
    )
    title = "# Does the result of ulskip tune hold?"
    return "\n\n".join([title, "\n".join(lines), note, provenance(rows)]) + "\n"


def speedup(row: Record) -> str:
    """Return the measured speedup of a row with its interval."""
    return (
        f"{row.measured_speedup:.2f}x ({row.measured_speedup_low:.2f} to"
        f" {row.measured_speedup_high:.2f})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder of multi30k and cnn_dm")
    parser.add_argument("--work", type=Path, default=Path("build/tune"))
    parser.add_argument("--tasks", default=",".join(CASES))
    parser.add_argument("--limit", type=int, default=100, help="examples that are reported")
    parser.add_argument("--budget", type=float, default=8, help="minutes for each task")
    parser.add_argument(
        "--page", action="store_true", help="write the page of the stored results alone"
    )
    args = parser.parse_args()
    if not args.page:
        if args.data is None:
            parser.error("expected --data PATH with multi30k and cnn_dm, or --page")
        for name in args.tasks.split(","):
            prepare(args.data, args.work, name)
            measure(args.work, name, args.limit, args.budget)
    write_atomic(FOLDER / "README.md", page())


if __name__ == "__main__":
    main()
