"""Measure whether skipping loses more on quantized weights: the embedded model and SmolLM2-135M through every format.

    python recipes/engines/quality.py --data PATH/cnn_dm [--work build/engines] [--models tiny,smollm2-135m]

PATH holds train.jsonl.gz, on which the folded patches of SmolLM2 are fitted, and validation.jsonl.gz. The recipe takes about
an hour on one core. If it is interrupted, the same command resumes. --page writes the page of the stored rows alone.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sacrebleu.metrics.bleu import BLEU

from ulskip_cli.cli.app import invoke
from ulskip_cli.core.files import write_atomic
from ulskip_cli.report.rows import read_answers, read_rows
from ulskip_cli.report.tables import provenance
from ulskip_cli.tasks.metrics.summarization import Rouge

NAME = "engine_quality"
FORMATS = {"torch": [], "llama_cpp": ["bf16", "q8_0", "q4_0"], "openvino": ["int8", "int4"]}
METRICS = {"wmt": ("bleu", "BLEU"), "cnn_dm": ("rouge1", "ROUGE-1")}
NUM_RESAMPLES, SEED = 2000, 12345
Row = dict[str, Any]


def call(*arguments: str) -> None:
    """Run a command of ulskip."""
    print("ulskip", *arguments, flush=True)
    if code := invoke(list(arguments)):
        sys.exit(code)


def points(model: str, data: Path | None, work: Path) -> list[str]:
    """Return the overrides of a model: its task and schedule."""
    if model == "tiny":
        return ["task=wmt", "strategy=unified", "ratio=2"]
    assert data, "--data is required for smollm2-135m"
    work.mkdir(parents=True, exist_ok=True)
    for name in ("train.jsonl.gz", "validation.jsonl.gz"):
        if not (work / name).exists():
            (work / name).symlink_to((data / name).resolve())
    return ["task=cnn_dm", f"task.file={work}/validation.jsonl.gz", "limit=50", "task.max_article_words=250",
            "task.max_new_tokens=96", "ratio=1.25", "strategy=one_block", "strategy.first=11", "strategy.patch=folded",
            f"calibration.task={{file:{work}/train.jsonl.gz}}", "calibration.examples=50",
            "calibration.responses=reference"]  # fmt: skip


def run(model: str, data: Path | None, work: Path) -> None:
    """Measure one model in every format, full and with skipping."""
    common = [f"model={model}", *points(model, data, work), f"name={NAME}", "speed.enabled=false"]
    for engine, weights in FORMATS.items():
        if weights:
            call("sweep", *common, f"engine={engine}", f"engine.weights={','.join(weights)}")
        else:
            call("run", *common, f"engine={engine}")


def scorer(kind: str, hypotheses: list[str], references: list[str]) -> Callable[[NDArray[np.int64]], float]:
    """Return the function that scores a sample of the answers, given by their indices."""
    if kind == "rouge1":
        values = Rouge(stemmer=True).f_measures(hypotheses, references)["rouge1"]
        return lambda chosen: float(values[chosen].mean())
    metric = BLEU()
    stats = np.array(metric._extract_corpus_statistics(hypotheses, [references]))
    return lambda chosen: float(metric._compute_score_from_stats(stats[chosen].sum(0).tolist()).score)


def interval(scorers: Sequence[Callable[[NDArray[np.int64]], float]], signs: Sequence[int], count: int) -> str:
    """Format a signed sum of scores with its 95% interval by the paired bootstrap over answers."""
    draw = np.random.default_rng(SEED)

    def total(chosen: NDArray[np.int64]) -> float:
        return sum(sign * one(chosen) for one, sign in zip(scorers, signs, strict=True))

    draws = [total(draw.integers(count, size=count)) for _ in range(NUM_RESAMPLES)]
    low, high = np.quantile(draws, [0.025, 0.975])
    return f"{total(np.arange(count)):+.2f} ({low:+.2f} to {high:+.2f})"


def lines(rows: list[Row]) -> list[str]:
    """Return the table rows of one model: every format, full and with skipping."""
    kind, _ = METRICS[rows[0]["task"]]
    held: dict[tuple[str, bool], Row] = {
        (row["engine_weights"] or "", len(row["kept_layers"]) == row["num_layers"]): row for row in rows
    }
    answers = {key: read_answers(row) for key, row in held.items()}
    count = len(answers["", True])
    score = {
        key: scorer(kind, [one["hypothesis"] for one in given], [one["reference"] for one in given])
        for key, given in answers.items()
    }
    found = []
    for weights in dict.fromkeys(weights for weights, _ in held):
        if {(weights, True), (weights, False)} - held.keys():
            continue
        full, view = held[weights, True], held[weights, False]
        base = [held["", True]["decode_loss"], held["", False]["decode_loss"]]
        own = view["decode_loss"] - full["decode_loss"]
        quantizing = more = "–"
        if weights:
            four = [score[weights, False], score[weights, True], score["", False], score["", True]]
            quantizing, more = interval(four[1::2], [1, -1], count), interval(four, [1, -1, -1, 1], count)
        cells = [
            full["model"], full["engine"], weights or full["dtype"], f"{len(view['kept_layers'])}/{view['num_layers']}",
            f"{full['decode_loss']:.3f}", f"{view['decode_loss']:.3f}", f"{own:+.3f}",
            f"{own - (base[1] - base[0]):+.3f}" if weights else "–",
            f"{full[kind]:.2f}", f"{view[kind]:.2f}", quantizing,
            interval([score[weights, False], score[weights, True]], [1, -1], count),
            interval([score[weights, False], score["", True]], [1, -1], count), more,
        ]  # fmt: skip
        found.append(f"| {' | '.join(cells)} |")
    return found


HEADS = ["model", "engine", "weights", "layers", "loss, full", "loss, skipping", "by skipping", "more than unquantized",
         "score, full", "score, skipping", "by the format", "by skipping", "by both", "more than unquantized"]  # fmt: skip


def page(folder: Path) -> str:
    """Return the page of the rows in a results folder."""
    rows = [row for row in read_rows([folder]) if row.get("decode_loss") is not None]
    table = [f"| {' | '.join(HEADS)} |", "| --- " * 4 + "| ---: " * (len(HEADS) - 4) + "|"]
    for model in dict.fromkeys(row["model"] for row in rows):
        table += lines([row for row in rows if row["model"] == model])
    note = (
        "Loss: the decode loss of the references in nats per token. Score: BLEU of tiny on the bundled sentences, ROUGE-1 of "
        "smollm2-135m on 50 CNN/DM articles. By the format: full in this format minus full in the torch engine. By skipping: "
        "skipping minus full in the same format. By both: skipping in this format minus full in the torch engine. More than "
        "unquantized: by skipping in this format minus by skipping in the torch engine. Intervals: 95%, paired bootstrap over "
        "answers. tiny skips evenly and was trained for it; smollm2-135m skips layers 11 to 16 with a folded patch. The "
        "weights of smollm2-135m were Q4_1 before they were stored in bfloat16, so a further 4-bit format rounds them a second "
        "time."
    )
    parts = ["# Skipping on quantized weights", "\n".join(table), note, provenance(rows)]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--work", type=Path, default=Path("build/engines"))
    parser.add_argument("--models", default="tiny,smollm2-135m")
    parser.add_argument("--page", action="store_true", help="write the page of the stored rows alone")
    args = parser.parse_args()
    if not args.page:
        for model in args.models.split(","):
            run(model, args.data, args.work)
    folder = Path("results") / NAME
    write_atomic(folder / "README.md", page(folder))


if __name__ == "__main__":
    main()
