"""Compare engines, formats of weights, skipped layers and drafts with one full model, in one table.

    python recipes/frontier/reproduce.py --data PATH --adapters runs/skip_adapters

The command compares for the embedded model on its sample, and for SmolLM2-135M on CNN/DM, with
trained adapters; without --data only the sample is measured. PATH holds cnn_dm/. Every point is
measured alone at each of --batch-sizes, on two cores that should be idle otherwise. --parts chooses
what is measured. If the recipe is interrupted, the same command resumes. The page goes to
results/frontier/README.md.
LLAMA_CPP_LIB_PATH names an own build of llama.cpp.
"""

import argparse
import json
import sys
from collections.abc import Container
from pathlib import Path

from ulskip_cli.cli.app import invoke
from ulskip_cli.core.config import group_choices
from ulskip_cli.core.correction import KINDS
from ulskip_cli.core.files import write_atomic
from ulskip_cli.experiments.intervals import Interval
from ulskip_cli.experiments.record import Record
from ulskip_cli.experiments.statistics import QualityShare, shares
from ulskip_cli.report.plots import pareto_front
from ulskip_cli.report.rows import collected, done, read_records
from ulskip_cli.report.tables import markdown_table, provenance, shared

NAME = "frontier"
ENGINES = "torch,llama_cpp,llama_cpp_q8_0,llama_cpp_q4_0"
PARTS = ("sample", "cnn_dm")
HEADS = ("front", "batch", "engine", "method", "layers", "speedup", "with prompt")
NOTE = (
    "Every point decodes the same prompts as the full model in torch, whose weights are not"
    " quantized, in pairs in one process, and answers the same examples. Front: no other point of"
    " this batch size is faster and keeps as much of the score; the intervals (95%) say how sure"
    " that is. Speedup: of decoding; with prompt: of reading the prompt and decoding. Patches are"
    " computed without training; adapters are trained (docs/adapters.md). With drafts the full"
    " model decides every token. `recipes/frontier/reproduce.py` writes this page."
)


def call(*arguments: str) -> None:
    print("ulskip", *arguments, flush=True)
    if code := invoke(list(arguments)):
        sys.exit(code)


def cnn_dm(data: Path, model: str, limit: int) -> list[str]:
    """Return the overrides of a run on CNN/DM; `model` is a preset, or a folder or hub id."""
    chosen = f"model={model}" if model in group_choices("model") else f"model.path={model}"
    task = [
        chosen,
        "task=cnn_dm",
        f"task.file={data}/cnn_dm/validation.jsonl.gz",
        "task.max_article_words=250",
    ]
    held_out = [
        f"calibration.task={{file: {data}/cnn_dm/train.jsonl.gz}}",
        "calibration.examples=64",
    ]
    lengths = ["max_new_tokens=96", "speed.new_tokens=96"]
    return [*task, *held_out, *lengths, f"limit={limit}"]


def measure(args: argparse.Namespace, part: str) -> None:
    """Measure a part: the embedded model at several depths, or another with one skipped block and
    corrections.
    """
    common = ["baseline_engine=torch", f"name={NAME}"]
    engines, batches = f"engine={args.engines}", f"batch_size={args.batch_sizes}"
    if part == "sample":
        call("sweep", *common, engines, batches, "strategy=full,unified", "ratio=1.5,2,3")
    else:
        common += cnn_dm(args.data, args.model, args.limit)
        measure_corrections(args, common)
    call("sweep", *common, engines, "strategy=full", "decoding=prompt_lookup", "batch_size=1")


def measure_corrections(args: argparse.Namespace, common: list[str]) -> None:
    """Measure the full model, and one skipped block with patches and with trained adapters."""
    engines, batches = f"engine={args.engines}", f"batch_size={args.batch_sizes}"
    block = ["strategy=one_block", f"ratio={args.ratios}"]
    call("sweep", *common, engines, batches, "strategy=full")
    folded = ["correction=patch", "correction.kind=folded"]
    call("sweep", *common, engines, batches, *block, *folded)
    call("sweep", *common, "engine=torch", batches, *block, "correction=patch")
    for file in sorted(args.adapters.glob("adapter-*/adapter.json")) if args.adapters else ():
        kind, adapted = adapter(file.parent)
        runs_in = "engine=torch" if KINDS[kind].takes_time else engines
        call("sweep", *common, runs_in, batches, *adapted)


def adapter(folder: Path) -> tuple[str, list[str]]:
    """Return the kind of an adapter, and the overrides of a run with it."""
    record = json.loads((folder / "adapter.json").read_text("utf-8"))
    layers = str(record["kept_sets"][0]).replace(" ", "")
    custom = ["strategy=custom", f"strategy.layers={layers}"]
    return record["kind"], [*custom, "correction=adapter", f"correction.path={folder}"]


def engine_of(row: Record) -> str:
    """Name the engine and the format of its weights; drafting on torch has a name of its own."""
    name = "torch" if row.engine == "speculative" else str(row.engine)
    return f"{name} {row.engine_weights}" if row.engine_weights else name


def judged(fulls: list[Record], rows: list[Record]) -> list[QualityShare]:
    """Return the full models and the rows that are compared with them, by batch size and speed."""
    one = Interval(1.0, 1.0, 1.0)
    clock = one.row("measured_speedup") | one.row("end_to_end_speedup")
    ids = {full.id for full in fulls}
    baselines = [full.replace(**clock, pairs=None) for full in fulls]
    compared = [row for row in rows if row.baseline_id in ids]
    shown = shares([*baselines, *compared], 1.0)
    return sorted(shown, key=lambda point: (point.record.batch_size, place(point)))


def place(point: QualityShare) -> tuple[float, float]:
    """Return speed and quality."""
    return point.record.measured_speedup or 0.0, point.share


def line(point: QualityShare, front: Container[tuple[float, float]]) -> list[str]:
    """Return the cells of a point."""
    row = point.record
    speedups = [row.speedup, row.with_prompt]
    return [
        "yes" if place(point) in front else "no",
        str(row.batch_size),
        engine_of(row),
        row.label,
        row.layers or "",
        *("–" if speedup is None else speedup.text(".2f") for speedup in speedups),
        f"{point.value:.1f}",
        point.text(),
    ]


def names_of(row: Record) -> str:
    """Name the model and the task of a row."""
    return shared([row], dict.fromkeys(("model", "task", "pair", "dataset"), "{}"))


def page(rows: list[Record]) -> str:
    """Return the page: a table for each model and its task."""
    rows = [row for row in done(rows) if row.speedup and not row.has_two_depths]
    named = {row.baseline_id for row in rows}
    fulls = [row for row in rows if row.id in named]
    parts = ["# What is best at which speed?", NOTE]
    for names, same in collected(fulls, names_of).items():
        points, lines = judged(same, rows), []
        for of_batch in collected(points, lambda point: point.record.batch_size).values():
            front = pareto_front([place(point) for point in of_batch])
            lines += [line(point, front) for point in of_batch]
        heads = [*HEADS, points[0].title, "of baseline"]
        parts += [f"## {names}", markdown_table(heads, lines, 4)]
        parts.append(provenance([point.record for point in points]))
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder of cnn_dm")
    parser.add_argument(
        "--parts", help=f"parts to measure: {', '.join(PARTS)}; without --data sample alone"
    )
    parser.add_argument(
        "--model", default="smollm2-135m", help="preset, folder or hub id of the model on CNN/DM"
    )
    parser.add_argument("--adapters", type=Path, help="work folder of recipes/skip_adapters")
    parser.add_argument("--engines", default=ENGINES)
    parser.add_argument("--batch-sizes", default="1,8")
    parser.add_argument("--ratios", default="1.25,1.5,2", help="ratios of patches on CNN/DM")
    parser.add_argument("--limit", type=int, default=200, help="number of articles")
    parser.add_argument(
        "--page", action="store_true", help="write the page of the stored rows alone"
    )
    args = parser.parse_args()
    parts = args.parts.split(",") if args.parts else PARTS if args.data else PARTS[:1]
    if args.data is None and set(parts) - {"sample"}:
        parser.error("expected --data PATH with cnn_dm, or --parts sample")
    for part in () if args.page else parts:
        measure(args, part)
    folder = Path("results") / NAME
    write_atomic(folder / "README.md", page(read_records([folder])))


if __name__ == "__main__":
    main()
