"""Test the paper's claim on Multi30k: train a base, then fine-tuned checkpoints and skip adapters
for each strategy.

    python recipes/multi30k/reproduce.py --data PATH/multi30k --work runs/multi30k

PATH holds train.{de,en}.gz, val.{de,en}, test_2016_flickr.{de,en} and test_2017_flickr.{de,en}.
Every checkpoint is evaluated on both test sets. The recipe takes hours on one core
(OMP_NUM_THREADS=1). If it is interrupted, the same command resumes and skips finished trainings and
evaluations. The text is CC BY-NC-SA 4.0, so neither it nor the weights are part of this repository;
tables, plots and hypotheses are.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ulskip_cli.cli.app import invoke
from ulskip_cli.core.config import compose
from ulskip_cli.experiments.results import ResultsFolder

TESTS = {
    "test": "test_2016_flickr",
    "test_2017_flickr": "test_2017_flickr",
}  # name in the work folder: name of the data
FILES = {
    "train.de": "train.de.gz",
    "train.en": "train.en.gz",
    "val.de": "val.de",
    "val.en": "val.en",
    **{
        f"{link}.{language}": f"{test}.{language}"
        for link, test in TESTS.items()
        for language in ("de", "en")
    },
}
BASE = [
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
]
FINE_TUNE = ["train=scratch", "train.epochs=0.5", "train.learning_rate=2e-3", "train.dropout=0.1"]
ADAPTER = [
    "train=adapter",
    "train.epochs=1",
    "train.batch_size=32",
    "train.learning_rate=2e-3",
    "train.lora.rank=32",
    "train.lora.alpha=64",
    "train.max_length=128",
    "train.precision=float32",
]
# Budgets with which an adapter and fine-tuning are compared, by variant.
BUDGET = ("train.ce_weight=1", "train.epochs=2", "train.batch_size=64")
BUDGETS = {
    "reference": (*BUDGET, "train.responses=reference"),
    "beams": (*BUDGET, "train.responses=both", "train.own.num_beams=4"),
}
FULL_RANK = ("train.lora.rank=128", "train.lora.alpha=256")
# The loss of the adapters: cross-entropy, and divergence from the base before the training.
SAME_LOSS = (
    "train.distill_weight=1",
    "train.teacher=initial",
    "train.label_smoothing=0",
)
PATCH = ["correction=patch"]  # computed at evaluation, without training
CALIBRATION_EXAMPLES = 100
ADAPTER_RATIOS = {"unified": (2, 3, 6), "search": (3, 6)}
BASE_NAME, BASE_FULL, PATCHES = (
    "base",
    "base-1x",
    "patches",
)  # names in --only besides the checkpoints


@dataclass(frozen=True)
class FineTuned:
    """A checkpoint or skip adapter that is trained from the base, with the schedules of its
    training and evaluation.
    """

    strategy: str
    ratios: tuple[float, ...]
    seed: int = 1
    variant: str = ""
    options: tuple[str, ...] = ()
    method: str = "full"  # full: every weight | adapter: the base is unchanged

    @property
    def name(self) -> str:
        ratios = "+".join(f"{ratio:g}" for ratio in self.ratios)
        method = "adapter" if self.method == "adapter" else ""
        return "-".join(
            filter(None, [method, self.strategy, f"{ratios}x", self.variant, f"s{self.seed}"])
        )

    @property
    def recipe(self) -> list[str]:
        return [*(ADAPTER if self.method == "adapter" else FINE_TUNE), *self.options]

    def weights(self, work: Path) -> list[str]:
        if self.method == "adapter":
            adapter = ["correction=adapter", f"correction.path={work / self.name}"]
            return [f"model.path={work / BASE_NAME}", *adapter]
        return [f"model.path={work / self.name}"]

    @property
    def is_evaluated_at_full_depth(self) -> bool:
        """True if the checkpoint is also evaluated at 1x; with an adapter, 1x is the base."""
        return (
            self.method == "full"
            and 1 not in self.ratios
            and bool(self.variant or self.strategy in ADAPTER_RATIOS)
        )


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


def equal_budget(seed: int) -> list[FineTuned]:
    """List the checkpoints that are fine-tuned with the responses, epochs and loss of adapters, and
    full depth as their control.
    """
    schedules = (("full", 1), ("unified", 2), ("unified", 3), ("unified", 6))
    return [
        FineTuned(strategy, (ratio,), seed, variant, (*budget, *SAME_LOSS))
        for variant, budget in BUDGETS.items()
        for strategy, ratio in schedules
    ]


def adapters(seed: int) -> list[FineTuned]:
    """List the skip adapters, trained on the references, and on the base's own answers too, which
    are of beams or greedy.

    Answers of beams are worth imitating in themselves, so their cross-entropy joins the divergence
    (arXiv:1606.07947).
    """
    responses = {
        **{variant: (*budget, *FULL_RANK) for variant, budget in BUDGETS.items()},
        "": ("train.responses=both",),
    }
    return [
        FineTuned(strategy, (ratio,), seed, variant, chosen, "adapter")
        for variant, chosen in responses.items()
        for strategy, ratios in ADAPTER_RATIOS.items()
        for ratio in ratios
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
    results: list[str] = field(default_factory=lambda: ["name=multi30k"])

    @property
    def base(self) -> list[str]:
        return [f"model.path={self.work / BASE_NAME}"]

    def files(self, part: str) -> dict[str, str]:
        data = self.work / "data"
        return {"source_file": f"{data}/{part}.de", "reference_file": f"{data}/{part}.en"}

    def link(self, source: Path) -> None:
        data = self.work / "data"
        data.mkdir(parents=True, exist_ok=True)
        for name, file in FILES.items():
            link = data / (name + ".gz" if file.endswith(".gz") else name)
            if not link.exists():
                link.symlink_to((source / file).resolve())

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

    def train_base(self) -> None:
        self.train([], BASE_NAME, *BASE)

    def task(self, test: str) -> list[str]:
        test_files = [f"task.{key}={file}" for key, file in self.files(test).items()]
        held_out = ",".join(f"{key}:{file}" for key, file in self.files("val").items())
        calibration = [
            f"calibration.task={{{held_out}}}",
            f"calibration.examples={CALIBRATION_EXAMPLES}",
        ]
        return ["task.dataset=files", *test_files, *calibration]

    def evaluate(self, weights: list[str], strategy: str, ratio: float | str, *more: str) -> None:
        """Evaluate quality alone, on both test sets. Early exit decodes one sentence at a time: a
        batch shares its depth.
        """
        batch = 1 if strategy == "early_exit" else 64
        quality_only = [f"batch_size={batch}", "baseline=false", "speed.enabled=false"]
        schedule = [f"strategy={strategy}", f"ratio={ratio}", *more]
        for test in TESTS:
            call(
                "sweep",
                *weights,
                "model.dtype=float32",
                *self.task(test),
                *schedule,
                *self.results,
                *quality_only,
            )

    def found(self, ratio: float) -> list[int]:
        """Read the layers that the newest search found on the base."""
        wanted = (str(self.work / BASE_NAME), "search", ratio)
        rows = ResultsFolder.of(compose(self.results)).records()
        found = [row for row in rows if (row.model, row.strategy, row.target_speedup) == wanted]
        return list([row for row in found if not row.correction][-1].kept_layers)

    def layers(self, strategy: str, ratio: float) -> list[str]:
        """Return the option with the layers that search found on the base, or nothing; a search
        that is missing runs first.
        """
        if strategy != "search":
            return []
        self.evaluate(self.base, "search", ratio)
        return [f"strategy.layers={self.found(ratio)}"]

    def evaluate_base(self) -> None:
        self.evaluate(self.base, "full", 1)
        self.evaluate(
            self.base, "unified,top_skip,bottom_skip,skip_decode,block_influence,search", "2,3,6"
        )
        self.evaluate(self.base, "early_exit", "2,3,6")

    def evaluate_patches(self) -> None:
        for strategy, ratios in ADAPTER_RATIOS.items():
            for ratio in ratios:
                self.evaluate(self.base, strategy, ratio, *self.layers(strategy, ratio), *PATCH)

    def make(self, one: FineTuned) -> None:
        """Train and evaluate one checkpoint or adapter."""
        layers = self.layers(one.strategy, one.ratios[0])
        schedule = [
            f"strategy={one.strategy}",
            *layers,
            f"train.ratios=[{','.join(f'{ratio:g}' for ratio in one.ratios)}]",
        ]
        shared = (
            [f"train.own.file={self.work / BASE_NAME}/own_responses.jsonl"]
            if one.method == "adapter" or one.variant
            else []
        )
        self.train(
            [*self.base, "model.dtype=float32"],
            one.name,
            *one.recipe,
            *shared,
            *schedule,
            f"seed={one.seed}",
        )
        for ratio in one.ratios:
            self.evaluate(
                one.weights(self.work), "full" if ratio == 1 else one.strategy, ratio, *layers
            )
        if one.is_evaluated_at_full_depth:
            self.evaluate(one.weights(self.work), "full", 1)

    def measure_speed(self, checkpoints: Sequence[FineTuned]) -> None:
        """Time checkpoints and adapters; the machine should be idle otherwise."""
        settings = [
            "model.dtype=float32",
            *self.task("test"),
            "limit=64",
            "speed.pairs=21",
            *self.results,
        ]
        for one in checkpoints:
            ratios = ",".join(f"{ratio:g}" for ratio in one.ratios)
            batches = "1" if one.strategy == "early_exit" else "1,8"
            schedule = [
                f"strategy={one.strategy}",
                *self.layers(one.strategy, one.ratios[0]),
                f"ratio={ratios}",
            ]
            call("sweep", *one.weights(self.work), *schedule, f"batch_size={batches}", *settings)


def timed() -> list[FineTuned]:
    """List the checkpoints and adapters whose speed is measured: those of the first seed."""
    return [*contest(1), *(one for one in adapters(1) if one.variant == "beams")]


def checkpoints(seeds: int) -> dict[str, FineTuned]:
    """Return all checkpoints and adapters by name, in the order of their training."""
    again = [one for seed in range(2, seeds + 1) for one in contest(seed)]
    every = [
        *contest(1),
        *again,
        *(one for seed in range(1, min(seeds, 2) + 1) for one in equal_budget(seed)),
        *(one for seed in range(1, seeds + 1) for one in adapters(seed)),
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
        "--only",
        default="",
        help="names in this order: base,base-1x,patches,unified-2x-s1,adapter-unified-2x-s1,...",
    )
    parser.add_argument("--name", default="multi30k", help="folder of the results")
    parser.add_argument(
        "--no-speed", action="store_true", help="train and evaluate without timing the checkpoints"
    )
    parser.add_argument(
        "--speed-only",
        action="store_true",
        help="time the trained checkpoints alone, or those of --only",
    )
    args = parser.parse_args()
    named = checkpoints(args.seeds)
    chosen = args.only.split(",") if args.only else [BASE_NAME, PATCHES, *named]
    known = [BASE_NAME, BASE_FULL, PATCHES, *named]
    if unknown := [name for name in chosen if name not in known]:
        parser.error(
            f"expected --only to have names of {', '.join(known)}, got {', '.join(unknown)}"
        )
    if args.no_speed and args.speed_only:
        parser.error("expected --no-speed or --speed-only, got both; leave out one of them")
    reproduction = Reproduction(args.work, [f"name={args.name}"])
    reproduction.link(args.data)
    if args.speed_only:
        return reproduction.measure_speed(
            [named[name] for name in chosen if name in named] if args.only else timed()
        )
    reproduction.train_base()
    for name in chosen:
        if name == BASE_FULL:
            reproduction.evaluate(reproduction.base, "full", 1)
        elif name == BASE_NAME:
            reproduction.evaluate_base()
        elif name == PATCHES:
            reproduction.evaluate_patches()
        else:
            reproduction.make(named[name])
    if not (args.only or args.no_speed):
        reproduction.measure_speed(timed())


if __name__ == "__main__":
    main()
