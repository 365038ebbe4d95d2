"""Reproduce the paper's experiment on one language pair: train and evaluate one checkpoint for each
target speedup.

    python recipes/paper/reproduce.py --train-source train.de --train-reference train.en [--model
    bigscience/bloomz-7b1-mt]

Hyper-parameters and decoding are the paper's (`train=paper`, `experiment=paper`); you provide the
training text, since the paper's own is not published. Under `torchrun --nproc_per_node=8` the
trainings use all GPUs. Run the command again without torchrun to evaluate on one GPU; it skips
finished trainings. If it is interrupted, the same command resumes. It has not been run with this
model yet, so its time is not known.
"""

import argparse
import os
import sys
from pathlib import Path

from ulskip_cli.cli.app import invoke


def call(*arguments: str) -> None:
    if int(os.environ.get("RANK", "0")) == 0:
        print("ulskip", *arguments, flush=True)
    if code := invoke(list(arguments)):
        sys.exit(code)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--train-source", required=True, help="one sentence a line, plain or gzipped"
    )
    parser.add_argument("--train-reference", required=True)
    parser.add_argument("--model", default="bigscience/bloomz-7b1-mt", help="hub id or folder")
    parser.add_argument("--pair", default="de-en")
    parser.add_argument("--ratios", default="2,3,5,10")
    parser.add_argument("--work", type=Path, default=Path("runs/paper"))
    parser.add_argument("--train", nargs="*", default=[], help="more overrides of the trainings")
    parser.add_argument("--run", nargs="*", default=[], help="more overrides of the evaluations")
    args = parser.parse_args()

    def strategy(ratio: str) -> list[str]:
        return (
            ["strategy=full"]
            if ratio == "1"
            else ["strategy=unified", "strategy.spacing=reference"]
        )

    files = [
        "task.dataset=files",
        f"task.source_file={args.train_source}",
        f"task.reference_file={args.train_reference}",
    ]
    ratios = ["1", *args.ratios.split(",")]
    for ratio in ratios:
        call(
            "train",
            f"model.path={args.model}",
            "train=paper",
            f"task.pair={args.pair}",
            *files,
            *strategy(ratio),
            f"train.ratios={ratio}",
            f"output={args.work}/{ratio}x",
            *args.train,
        )
    if "RANK" in os.environ:
        return
    for ratio in ratios:
        call(
            "sweep",
            "experiment=paper",
            f"model.path={args.work}/{ratio}x",
            f"task.pair={args.pair}",
            *strategy(ratio),
            f"ratio={ratio}",
            "batch_size=1,2,8",
            *args.run,
        )


if __name__ == "__main__":
    main()
