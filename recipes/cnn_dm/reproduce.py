"""Measure how far LoRA recovers the quality that skipping costs SmolLM2-135M on CNN/DM, at a size for two cores.

    python recipes/cnn_dm/reproduce.py --data PATH/cnn_dm --work runs/cnn_dm

PATH holds train.jsonl.gz and validation.jsonl.gz. The recipe trains LoRA adapters on the training articles, once at full
depth (the control) and once with 24 or 20 of 30 layers, drawn for every step. It compares decode loss and ROUGE of 50
validation articles before and after. If it is interrupted, the same command resumes.
"""

import argparse
import json
import sys
from pathlib import Path

from ulskip_cli.cli.app import invoke
from ulskip_cli.core.files import read_jsonl, write_atomic

NAME = "cnn_dm"
RATIOS = "1.25,1.5"
TRAIN = [
    "train=lora",
    "train.precision=bf16",
    "train.batch_size=4",
    "train.gradient_accumulation_steps=1",
    "train.epochs=2",
    "train.max_length=640",
]
KEYS = ("decode_loss", "rouge1", "rouge2", "rougeL", "rougeLsum")


def call(*arguments: str) -> None:
    print("ulskip", *arguments, flush=True)
    if code := invoke(list(arguments)):
        sys.exit(code)


def page(rows: list[dict], records: dict[str, dict]) -> str:
    """Write the page: the table and the cost of the trainings."""
    found = {}
    for row in rows:
        weights = Path(row["model"]).name if row["model"] != "smollm2-135m" else "before"
        found[weights, len(row["kept_layers"])] = row
    names = {"before": "without training", "full": "LoRA at full depth (control)", "unified": "LoRA with 24 and 20 layers"}
    lines = ["| weights | layers | decode loss | R-1 | R-2 | R-L | R-Lsum | loops |", "| --- " + "| ---: " * 7 + "|"]
    for (weights, count), row in sorted(found.items(), key=lambda item: (list(names).index(item[0][0]), -item[0][1])):
        scores = " | ".join(f"{row[key]:.2f}" for key in KEYS)
        loops = f"{row['degenerate']['loop']}/{row['num_examples']}"
        lines.append(f"| {names[weights]} | {count}/{row['num_layers']} | {scores} | {loops} |")
    cost = [f"{names[n]}: {r['steps']} steps on {r['examples']} articles, {r['seconds']:.0f} s" for n, r in records.items()]
    recovered = []
    for count in (24, 20):
        full, skipped, after = (
            found.get(key, {}).get("decode_loss") for key in (("before", 30), ("before", count), ("unified", count))
        )
        if None not in (full, skipped, after):
            share = (skipped - after) / (skipped - full)
            recovered.append(
                f"With {count} layers the decode loss went from {skipped:.2f} to {after:.2f} (full depth before any training: "
                f"{full:.2f}), {share:.0%} of what skipping had cost."
            )
    return "\n\n".join(["# SmolLM2-135M on CNN/DM", "\n".join(lines), " ".join(recovered), "; ".join(cost) + "."]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/cnn_dm"))
    parser.add_argument("--limit", type=int, default=50)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    for name in ("train", "validation"):
        link = args.work / f"{name}.jsonl.gz"
        if not link.exists():
            link.symlink_to((args.data / link.name).resolve())
    articles = [
        "task=cnn_dm",
        "task.max_article_words=250",
        "task.template=instruction_after_input",
        "decoding.max_new_tokens=64",
    ]
    test = [*articles, f"task.file={args.work}/validation.jsonl.gz", f"limit={args.limit}", f"name={NAME}", "batch_size=10",
            "decoding.max_new_tokens=90", "baseline=false", "speed.enabled=false"]  # fmt: skip
    records = {}
    for weights in ("before", "full", "unified"):
        model = ["model=smollm2-135m"]
        if weights != "before":
            out, ratios = args.work / weights, "1" if weights == "full" else f"[{RATIOS}]"
            call("train", *model, *articles, f"task.file={args.work}/train.jsonl.gz", *TRAIN, f"strategy={weights}",
                 f"train.ratios={ratios}", f"output={out}")  # fmt: skip
            records[weights] = json.loads((out / "training.json").read_text("utf-8"))
            model = [f"model.path={out}"]
        strategies = "full" if weights == "full" else "full,unified"
        call("sweep", *model, *test, f"strategy={strategies}", f"ratio={RATIOS}")
    folder = Path("results") / NAME
    write_atomic(folder / "README.md", page(read_jsonl(folder / "runs.jsonl"), records))


if __name__ == "__main__":
    main()
