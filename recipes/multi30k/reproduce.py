"""Test the paper's claim on Multi30k: train a base, then fine-tuned checkpoints and skip adapters
for each strategy.

    python recipes/multi30k/reproduce.py --data PATH/multi30k --work runs/multi30k

PATH holds train.{de,en}.gz, val.{de,en}, test_2016_flickr.{de,en} and test_2017_flickr.{de,en}.
Every checkpoint is evaluated on both test sets; speed is not measured. The recipe takes hours on
two cores: two processes with OMP_NUM_THREADS=1 and different names in --only share the work. If it
is interrupted, the same command resumes and skips finished trainings and evaluations. The text is
CC BY-NC-SA 4.0, so neither it nor the weights are part of this repository; tables, plots and
hypotheses are.
"""

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from ulskip_cli.cli.app import invoke
from ulskip_cli.core.config import compose
from ulskip_cli.experiments.results import ResultsFolder

RESULTS = ["name=multi30k"]
TESTS = ("test_2016_flickr", "test_2017_flickr")
BASE = (
    "model=random",
    "model.path=llama-12x128",
    "strategy=full",
    "train=scratch",
    "train.ratios=1",
    "train.epochs=6",
    "train.vocab_size=6000",
    "train.learning_rate=4e-3",
    "train.dropout=0.1",
    "train.evaluate_every=453",
)
SHORT = ("train=scratch", "train.epochs=0.5", "train.learning_rate=2e-3", "train.dropout=0.1")
# Two epochs in batches of 64, with cross-entropy and the divergence from the base: for fine-tuning
# and adapters.
LONG = ("train.epochs=2", "train.batch_size=64", "train.ce_weight=1")
FINE_TUNE_LONG = (
    *SHORT,
    *LONG,
    "train.responses=reference",
    "train.distill_weight=1",
    "train.teacher=initial",
    "train.label_smoothing=0",
)
ADAPTER = (
    "train=adapter",
    *LONG,
    "train.learning_rate=2e-3",
    "train.lora.rank=128",
    "train.lora.alpha=256",
    "train.max_length=128",
    "train.precision=float32",
)
# Answers of beams are worth imitating in themselves, so their cross-entropy joins the divergence
# (arXiv:1606.07947).
RESPONSES = {
    "reference": ("train.responses=reference",),
    "beams": ("train.responses=both", "train.own.num_beams=4"),
}
CALIBRATION_EXAMPLES = 100
RATIOS = (2, 3, 6)
BASE_NAME, PATCHES = "base", "patches"  # names in --only besides the checkpoints


@dataclass(frozen=True)
class FineTuned:
    """A checkpoint or skip adapter that is trained from the base, with the schedules of its
    training and evaluation.
    """

    strategy: str
    ratios: tuple[float, ...]
    seed: int = 1
    variant: str = ""
    options: tuple[str, ...] = SHORT
    method: str = "full"  # full: every weight | adapter: the base is unchanged

    @property
    def name(self) -> str:
        ratios = "+".join(f"{ratio:g}" for ratio in self.ratios)
        method = "adapter" if self.method == "adapter" else ""
        return "-".join(
            filter(None, [method, self.strategy, f"{ratios}x", self.variant, f"s{self.seed}"])
        )

    def weights(self, work: Path) -> list[str]:
        if self.method == "adapter":
            adapter = ["correction=adapter", f"correction.path={work / self.name}"]
            return [f"model.path={work / BASE_NAME}", *adapter]
        return [f"model.path={work / self.name}"]


def contest(seed: int) -> list[FineTuned]:
    """List the checkpoints for the paper's claim: every strategy with the same budget, and full
    depth as the control.

    With two layers skip_decode equals unified. early_exit has one training for all ratios, because
    it trains every exit. search trains the layers that it found on the base.
    """
    static = (
        ("unified", "top_skip", "bottom_skip", "search")
        if seed == 1
        else ("unified", "top_skip", "search")
    )
    return [
        FineTuned("full", (1,), seed),
        *(FineTuned(s, (r,), seed) for r in (2, 3) for s in (*static, "skip_decode")),
        *(FineTuned(s, (6,), seed) for s in static),
        FineTuned("early_exit", (2, 3, 6), seed),
    ]


def longer(seed: int) -> list[FineTuned]:
    """List the checkpoints that are fine-tuned as long as the adapters, with the same loss, and
    full depth as their control.
    """
    schedules = (("full", 1), *(("unified", ratio) for ratio in RATIOS))
    return [
        FineTuned(strategy, (ratio,), seed, "reference", FINE_TUNE_LONG)
        for strategy, ratio in schedules
    ]


def adapters(seed: int) -> list[FineTuned]:
    """List the skip adapters, trained on the references, or on the base's own answers too."""
    return [
        FineTuned("unified", (ratio,), seed, variant, (*ADAPTER, *responses), "adapter")
        for variant, responses in RESPONSES.items()
        for ratio in RATIOS
    ]


def call(*arguments: str) -> None:
    print("ulskip", *arguments, flush=True)
    began = time.perf_counter()
    if code := invoke(list(arguments)):
        sys.exit(code)
    print(f"  {time.perf_counter() - began:.0f} s", flush=True)


@dataclass(frozen=True)
class Reproduction:
    """The trainings and evaluations in one work folder; finished ones are not repeated."""

    work: Path

    @property
    def base(self) -> list[str]:
        return [f"model.path={self.work / BASE_NAME}"]

    def files(self, part: str) -> dict[str, str]:
        data = self.work / "data"
        return {"source_file": f"{data}/{part}.de", "reference_file": f"{data}/{part}.en"}

    def link(self, source: Path) -> None:
        self.work.mkdir(parents=True, exist_ok=True)
        data = self.work / "data"
        if data.resolve() != source.resolve():
            data.unlink(missing_ok=True)
            data.symlink_to(source.resolve())

    def train(self, weights: list[str], output: str, *more: str) -> None:
        train = [f"task.{key}={file}.gz" for key, file in self.files("train").items()]
        held_out = ",".join(f"{key}:{file}" for key, file in self.files("val").items())
        validation = f"train.validation={{{held_out},limit:300}}"
        call(
            "train",
            *weights,
            *more,
            "task.dataset=files",
            *train,
            validation,
            f"output={self.work / output}",
        )

    def task(self, test: str) -> list[str]:
        test_files = [f"task.{key}={file}" for key, file in self.files(test).items()]
        held_out = ",".join(f"{key}:{file}" for key, file in self.files("val").items())
        calibration = [
            f"calibration.task={{{held_out}}}",
            f"calibration.examples={CALIBRATION_EXAMPLES}",
        ]
        return ["model.dtype=float32", "task.dataset=files", *test_files, *calibration, *RESULTS]

    def evaluate(self, weights: list[str], strategy: str, ratio: float | str, *more: str) -> None:
        """Evaluate quality alone, on both test sets. Early exit decodes one sentence at a time: a
        batch shares its depth.
        """
        size = ["batch_size=64"]
        if strategy == "early_exit":
            size = ["batch_size=1", "strategy.batch=na"]
        quality_only = [*size, "baseline=false", "speed.enabled=false"]
        schedule = [f"strategy={strategy}", f"ratio={ratio}", *more]
        for test in TESTS:
            call("sweep", *weights, *schedule, *self.task(test), *quality_only)

    def layers(self, strategy: str, ratio: float) -> list[str]:
        """Return the option with the layers that search found on the base, or nothing; a search
        that is missing runs first.
        """
        if strategy != "search":
            return []
        self.evaluate(self.base, "search", ratio)
        wanted = (str(self.work / BASE_NAME), "search", ratio)
        rows = ResultsFolder.of(compose(RESULTS)).records()
        found = [row for row in rows if (row.model, row.strategy, row.target_speedup) == wanted]
        return [f"strategy.layers={list(found[-1].kept_layers)}"]

    def evaluate_base(self) -> None:
        self.evaluate(self.base, "full", 1)
        every = "unified,top_skip,bottom_skip,skip_decode,block_influence,search"
        self.evaluate(self.base, every, ",".join(map(str, RATIOS)))

    def evaluate_patches(self) -> None:
        for ratio in RATIOS:
            self.evaluate(self.base, "unified", ratio, "correction=patch")

    def make(self, one: FineTuned) -> None:
        """Train and evaluate one checkpoint or adapter; an adapter leaves full depth as it is."""
        layers = self.layers(one.strategy, one.ratios[0])
        ratios = ",".join(f"{ratio:g}" for ratio in one.ratios)
        own = [f"train.own.file={self.work / BASE_NAME}/own_responses.jsonl"] if one.variant else []
        self.train(
            [*self.base, "model.dtype=float32"],
            one.name,
            *one.options,
            *own,
            f"strategy={one.strategy}",
            *layers,
            f"train.ratios=[{ratios}]",
            f"seed={one.seed}",
        )
        weights = one.weights(self.work)
        for ratio in one.ratios:
            self.evaluate(weights, "full" if ratio == 1 else one.strategy, ratio, *layers)
        if one.strategy == "unified" and one.method == "full":
            self.evaluate(weights, "full", 1)


def checkpoints(seeds: int) -> dict[str, FineTuned]:
    """Return all checkpoints and adapters by name, in the order of their training; two seeds of
    those with the longer training.
    """
    every = [one for seed in range(1, seeds + 1) for one in contest(seed)]
    every += [
        one for seed in range(1, min(seeds, 2) + 1) for one in (*longer(seed), *adapters(seed))
    ]
    return {one.name: one for one in every}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/multi30k"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--only", default="", help="names in this order, such as base,patches,unified-2x-s1"
    )
    args = parser.parse_args()
    if not args.data.is_dir():
        parser.error(f"expected --data to be a folder, got {args.data}")
    named = checkpoints(args.seeds)
    known = [BASE_NAME, PATCHES, *named]
    chosen = args.only.split(",") if args.only else known
    if unknown := [name for name in chosen if name not in known]:
        parser.error(
            f"expected --only to have names of {', '.join(known)}, got {', '.join(unknown)}"
        )
    reproduction = Reproduction(args.work)
    reproduction.link(args.data)
    reproduction.train([], BASE_NAME, *BASE)
    for name in chosen:
        if name == BASE_NAME:
            reproduction.evaluate_base()
        elif name == PATCHES:
            reproduction.evaluate_patches()
        else:
            reproduction.make(named[name])


if __name__ == "__main__":
    main()
