"""Test the paper's claim on Multi30k: train a base, fine-tune checkpoints for each strategy, evaluate them.

    python recipes/multi30k/reproduce.py --data PATH/multi30k --work runs/multi30k

PATH holds train.{de,en}.gz, val.{de,en} and test_2016_flickr.{de,en}. The recipe takes hours on one core
(OMP_NUM_THREADS=1). If it is interrupted, the same command resumes and skips finished trainings and evaluations. The text
is CC BY-NC-SA 4.0, so neither it nor the weights are part of this repository; tables and plots are.
"""

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from ulskip_cli.cli.app import invoke
from ulskip_cli.core.config import compose
from ulskip_cli.experiments.results import ResultsFolder

FILES = {
    "train.de": "train.de.gz", "train.en": "train.en.gz", "val.de": "val.de", "val.en": "val.en",
    "test.de": "test_2016_flickr.de", "test.en": "test_2016_flickr.en",
}  # fmt: skip
BASE = ["model=random", "model.path=llama-12x128", "strategy=full", "train=scratch", "train.ratios=1", "train.epochs=6",
        "train.vocab_size=6000", "train.learning_rate=4e-3", "train.dropout=0.1", "train.evaluate_every=453"]  # fmt: skip
FINE_TUNE = ["train=scratch", "train.epochs=0.5", "train.learning_rate=2e-3", "train.dropout=0.1"]


@dataclass(frozen=True)
class FineTuned:
    """A checkpoint that is fine-tuned from the base, with the schedules of its training and evaluation."""

    strategy: str
    ratios: tuple[float, ...]
    seed: int = 1
    variant: str = ""
    options: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        ratios = "+".join(f"{ratio:g}" for ratio in self.ratios)
        return "-".join(filter(None, [self.strategy, f"{ratios}x", self.variant, f"s{self.seed}"]))


def contest(seed: int) -> list[FineTuned]:
    """List the checkpoints for the paper's claim: every strategy with the same budget, and full depth as the control.

    With two layers skip_decode equals unified. early_exit has one training for all ratios, because it trains every exit.
    search trains the layers that it found on the base.
    """
    static = ("unified", "top_skip", "bottom_skip", "search") if seed == 1 else ("unified", "top_skip", "search")
    return [
        FineTuned("full", (1,), seed),
        *(FineTuned(s, (r,), seed) for r in (2, 3) for s in (*static, "skip_decode")),
        *(FineTuned(s, (6,), seed) for s in static),
        FineTuned("early_exit", (2, 3, 6), seed),
    ]


def options() -> list[FineTuned]:
    """List the checkpoints with further options: each option alone, then the best ones with more steps."""
    every, initial = (1, 2, 3, 6), ("train.distill_weight=1", "train.teacher=initial")
    return [
        *(FineTuned("unified", (r,), 1, "distill-initial", initial) for r in (2, 3)),
        *(FineTuned("search", (r,), 1, "distill-initial", initial) for r in (3, 6)),
        FineTuned("unified", (3,), 1, "full", ("train.full_weight=0.5",)),
        FineTuned("unified", every),
        FineTuned("unified", every, 1, "long", ("train.epochs=2", *initial)),
    ]


def call(*arguments: str) -> None:
    print("ulskip", *arguments, flush=True)
    began = time.perf_counter()
    if code := invoke(list(arguments)):
        sys.exit(code)
    print(f"  {time.perf_counter() - began:.0f} s", flush=True)


def files(folder: Path, part: str) -> dict[str, str]:
    return {"source_file": f"{folder}/{part}.de", "reference_file": f"{folder}/{part}.en"}


def data_task(folder: Path, part: str) -> list[str]:
    return ["task.dataset=files", *(f"task.{key}={file}" for key, file in files(folder, part).items())]


def evaluate(weights: Path, task: list[str], strategy: str, ratio: float | str, *more: str) -> None:
    """Evaluate quality alone. Early exit decodes one sentence at a time, because a batch would share its depth."""
    batch = 1 if strategy == "early_exit" else 64
    quality_only = [f"batch_size={batch}", "baseline=false", "speed.enabled=false"]
    schedule = [f"strategy={strategy}", f"ratio={ratio}", *more]
    call("sweep", f"model.path={weights}", "model.dtype=float32", *task, *schedule, "name=multi30k", *quality_only)


def searched(base: Path, ratio: float) -> list[int]:
    """Read the layers that search found on the base."""
    rows = ResultsFolder.of(compose(["name=multi30k"])).rows()
    found = [row for row in rows if (row["model"], row["strategy"], row["target_speedup"]) == (str(base), "search", ratio)]
    return list(found[-1]["kept_layers"])


def measure_speed(work: Path, task: list[str]) -> None:
    """Time the fine-tuned checkpoints; the machine should be idle otherwise."""
    timed = ["model.dtype=float32", *task, "limit=64", "speed.pairs=21", "name=multi30k"]
    for one in contest(1):
        ratios = ",".join(f"{ratio:g}" for ratio in one.ratios)
        batches = "1" if one.strategy == "early_exit" else "1,8"
        layers = [f"strategy.layers={searched(work / 'base', one.ratios[0])}"] if one.strategy == "search" else []
        schedule = [f"strategy={one.strategy}", *layers, f"ratio={ratios}", f"batch_size={batches}"]
        call("sweep", f"model.path={work / one.name}", *schedule, *timed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/multi30k"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default="", help="train these checkpoints alone, in this order: unified-2x-s1,...")
    parser.add_argument("--speed-only", action="store_true", help="time the trained checkpoints alone")
    args = parser.parse_args()
    data = args.work / "data"
    data.mkdir(parents=True, exist_ok=True)
    for name, file in FILES.items():
        link = data / (name + ".gz" if file.endswith(".gz") else name)
        if not link.exists():
            link.symlink_to((args.data / file).resolve())
    train = ["task.dataset=files", f"task.source_file={data}/train.de.gz", f"task.reference_file={data}/train.en.gz"]
    validation = f"train.validation={{source_file:{data}/val.de,reference_file:{data}/val.en,limit:300}}"
    held_out = ",".join(f"{key}:{file}" for key, file in files(data, "val").items())
    test = [*data_task(data, "test"), f"calibration.task={{{held_out}}}", "calibration.examples=100"]

    base = args.work / "base"
    if args.speed_only:
        return measure_speed(args.work, test)
    call("train", *BASE, *train, validation, f"output={base}")
    evaluate(base, test, "full", 1)
    evaluate(base, test, "unified,top_skip,bottom_skip,skip_decode,block_influence,search", "2,3,6")
    evaluate(base, test, "early_exit", "2,3,6")
    again = [one for seed in range(2, args.seeds + 1) for one in contest(seed)]
    named = {one.name: one for one in [*contest(1), *options(), *again]}
    for one in [named[name] for name in args.only.split(",")] if args.only else named.values():
        out, ratios = args.work / one.name, ",".join(f"{ratio:g}" for ratio in one.ratios)
        layers = [f"strategy.layers={searched(base, one.ratios[0])}"] if one.strategy == "search" else []
        call("train", f"model.path={base}", "model.dtype=float32", *FINE_TUNE, *train, validation, f"strategy={one.strategy}",
             *layers, f"train.ratios=[{ratios}]", f"seed={one.seed}", *one.options, f"output={out}")  # fmt: skip
        for ratio in one.ratios:
            evaluate(out, test, "full" if ratio == 1 else one.strategy, ratio, *layers)
        if one.variant and 1 not in one.ratios:
            evaluate(out, test, "full", 1)
    if not args.only:
        measure_speed(args.work, test)


if __name__ == "__main__":
    main()
