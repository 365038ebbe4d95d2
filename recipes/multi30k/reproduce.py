"""Whether the paper's claim holds on Multi30k: base, fine-tuned checkpoints, evaluations, then the page.

    python recipes/multi30k/reproduce.py --data PATH/multi30k --work runs/multi30k

PATH holds train.{de,en}.gz, val.{de,en} and test_2016_flickr.{de,en}. About three hours on one core (OMP_NUM_THREADS=1).
Killed at any moment, the same command carries on: finished trainings and evaluations are not run again. The text is
CC BY-NC-SA 4.0, so neither it nor the weights are part of this repository; tables and plots are.
"""

import argparse
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from ulskip_cli.cli import invoke

FILES = {
    "train.de": "train.de.gz", "train.en": "train.en.gz", "val.de": "val.de", "val.en": "val.en",
    "test.de": "test_2016_flickr.de", "test.en": "test_2016_flickr.en",
}  # fmt: skip
BASE = ["model=random", "model.path=llama-12x128", "strategy=full", "train=scratch", "train.ratios=1", "train.epochs=6",
        "train.vocab_size=6000", "train.learning_rate=4e-3", "train.dropout=0.1", "train.evaluate_every=453"]  # fmt: skip
FINE_TUNE = ["train=scratch", "train.epochs=0.5", "train.learning_rate=2e-3", "train.dropout=0.1"]


@dataclass(frozen=True)
class FineTuned:
    """One checkpoint and the schedules it is evaluated under."""

    strategy: str
    ratio: float
    seed: int = 1
    variant: str = ""
    options: tuple[str, ...] = ()
    evaluate: tuple[float, ...] = field(default=())

    @property
    def name(self) -> str:
        return "-".join(filter(None, [self.strategy, f"{self.ratio:g}x", self.variant, f"s{self.seed}"]))


def plan(seeds: int) -> list[FineTuned]:
    """Every checkpoint, the most telling first."""
    first = [FineTuned("full", 1), *(FineTuned(s, r) for r in (2, 3, 6) for s in ("unified", "top_skip", "bottom_skip"))]
    more = [
        one
        for seed in range(2, seeds + 1)
        for one in (FineTuned("full", 1, seed), *(FineTuned(s, r, seed) for r in (2, 3) for s in ("unified", "top_skip")))
    ]
    return first + more


def call(*arguments: str) -> None:
    print("ulskip", *arguments, flush=True)
    began = time.perf_counter()
    if code := invoke(list(arguments)):
        sys.exit(code)
    print(f"  {time.perf_counter() - began:.0f} s", flush=True)


def data_task(folder: Path, part: str) -> list[str]:
    return ["task.dataset=files", f"task.source_file={folder}/{part}.de", f"task.reference_file={folder}/{part}.en"]


def evaluate(weights: Path, task: list[str], strategy: str, ratio: float, *more: str) -> None:
    """One row of quality; speed is measured apart, since it does not depend on the weights."""
    call("sweep", f"model.path={weights}", "model.dtype=float32", *task, f"strategy={strategy}", f"ratio={ratio}", "name=multi30k",
         "batch_size=64", "baseline=false", "speed.enabled=false", *more)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/multi30k"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default="", help="names of checkpoints that start with this")
    args = parser.parse_args()
    data = args.work / "data"
    data.mkdir(parents=True, exist_ok=True)
    for name, file in FILES.items():
        link = data / (name + ".gz" if file.endswith(".gz") else name)
        if not link.exists():
            link.symlink_to((args.data / file).resolve())
    train = ["task.dataset=files", f"task.source_file={data}/train.de.gz", f"task.reference_file={data}/train.en.gz"]
    validation = f"train.validation={{source_file:{data}/val.de,reference_file:{data}/val.en,limit:300}}"
    test = data_task(data, "test")

    base = args.work / "base"
    call("train", *BASE, *train, validation, f"output={base}")
    evaluate(base, test, "full", 1)
    for strategy in ("unified", "top_skip", "bottom_skip"):
        for ratio in (2, 3, 6):
            evaluate(base, test, strategy, ratio)
    for one in plan(args.seeds):
        if not one.name.startswith(args.only):
            continue
        out = args.work / one.name
        call("train", f"model.path={base}", "model.dtype=float32", *FINE_TUNE, *train, validation, f"strategy={one.strategy}",
             f"train.ratios={one.ratio:g}", f"seed={one.seed}", *one.options, f"output={out}")  # fmt: skip
        for ratio in one.evaluate or (one.ratio,):
            evaluate(out, test, one.strategy, ratio)


if __name__ == "__main__":
    main()
