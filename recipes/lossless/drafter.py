"""Train a small drafter for SmolLM2-135M on CNN/DM: 5 of 30 layers with a skip adapter.

    python recipes/lossless/drafter.py --data PATH/cnn_dm --work runs/drafter

PATH holds train.jsonl.gz (100 articles) and validation.jsonl.gz (300). The adapter learns the
full model's greedy answers to 400 windows of 250 words. The first 100 articles of validation are
for measuring. The training takes about half an hour on two cores. If it is interrupted, the same
command resumes. Afterwards measure with

    python recipes/lossless/reproduce.py

whose help has the command. The training prints the layers.
"""

import argparse
import gzip
import json
import sys
from pathlib import Path

from ulskip_cli.cli.app import invoke
from ulskip_cli.core.files import write_atomic

LAYERS = [0, 7, 14, 21, 29]
WORDS, WINDOWS, MEASURED = 250, 3, 100


def windows(articles: list[dict[str, str]]) -> list[dict[str, str]]:
    """Return the windows of all articles as articles, the first ones first, without short ones."""
    parts = list[dict[str, str]]()
    for start in range(0, WINDOWS * WORDS, WORDS):
        for article in articles:
            part = article["article"].split()[start : start + WORDS]
            if len(part) >= WORDS // 2:
                parts.append({**article, "article": " ".join(part)})
    return parts


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/drafter"))
    parser.add_argument("--layers", type=json.loads, default=LAYERS)
    parser.add_argument("overrides", nargs="*", help="further overrides of `ulskip train`")
    args = parser.parse_args()
    work: Path = args.work
    work.mkdir(parents=True, exist_ok=True)
    train, validation = (
        list(
            map(
                json.loads,
                gzip.decompress((args.data / f"{split}.jsonl.gz").read_bytes()).splitlines(),
            )
        )
        for split in ("train", "validation")
    )
    for name, articles in (
        ("windows", windows(train + validation[MEASURED:])),
        ("report", validation[:MEASURED]),
    ):
        lines = "".join(json.dumps(article) + "\n" for article in articles)
        write_atomic(work / f"{name}.jsonl", lines)
    command = [
        "train",
        "train=adapter",
        "train.responses=own",
        "train.lora={rank:128,alpha:256}",
        "model=smollm2-135m",
        "task=cnn_dm",
        f"task.file={work}/windows.jsonl",
        "task.max_new_tokens=96",
        "limit=400",
        f"train.own.file={work}/own.jsonl",
        "train.max_length=640",
        "train.precision=bf16",
        "train.epochs=8",
        "train.save_every=50",
        "train.log_every=10",
        "strategy=search",
        f"strategy.layers={json.dumps(args.layers, separators=(',', ':'))}",
        f"train.ratios={30 / len(args.layers):g}",
        f"output={work}/adapter",
        *args.overrides,
    ]
    print("ulskip", *command, flush=True)
    sys.exit(invoke(command))


if __name__ == "__main__":
    main()
