"""Measure the decode loss of gap patches: each option of the fit alone, the number of tokens, and
kinds by schedule.

    python benchmarks/patches.py --data PATH/cnn_dm --work runs/skip_adapters --part
    options|tokens|kinds|adapters

PATH holds train.jsonl.gz and validation.jsonl.gz. Patches are fitted on training articles. Losses
are measured on the first 20 validation articles, and on 20 of the last 100, which choose options.
Finished measurements are kept in the JSON file.
"""

import argparse
import json
import time
from pathlib import Path

import torch

from ulskip_cli.core import environment, schedule
from ulskip_cli.core.config import compose
from ulskip_cli.core.config_schema import OwnResponses
from ulskip_cli.core.correction import PATCHES
from ulskip_cli.core.files import read_object, write_atomic
from ulskip_cli.core.progress import ProgressCallback
from ulskip_cli.engines.decoder import Decoder
from ulskip_cli.engines.own_responses import generate_own_responses, greedy_context
from ulskip_cli.engines.scoring import ReferenceLoss
from ulskip_cli.experiments.preflight import resolve
from ulskip_cli.experiments.record import Environment
from ulskip_cli.experiments.workload import encode_workload
from ulskip_cli.inference.batching import BatchSize
from ulskip_cli.inference.layerwise import block_influence
from ulskip_cli.inference.loading import load, load_tokenizer
from ulskip_cli.inference.patch_fit import DEFAULT_RIDGE, PatchFitter
from ulskip_cli.inference.skip_adapter import SkipAdapter
from ulskip_cli.report.tables import markdown_table
from ulskip_cli.strategies.plan import Plan
from ulskip_cli.strategies.search import spread, without_block
from ulskip_cli.tasks.encoding import EncodedExample

REPORTED, CHOOSING = 20, 20
RIDGES = {f"ridge {ridge:g}": ridge for ridge in (0.01, 0.03, 0.3, 1.0, 3.0)}
OPTIONS = {"as default": DEFAULT_RIDGE, **RIDGES}
KINDS = {"full": 0.1, "folded": 1.0}
KEPT, BLOCKS = (27, 24, 20, 15), 8
OPTION_BLOCKS = {24: 11, 20: 5}  # first skipped layers for the options and the numbers of tokens
FEWER_TOKENS = (20, 8, 4, 2, 1)  # one batch of prompts in so many


class Measurement:
    """A model with encoded articles, and the JSON file that keeps finished measurements."""

    def __init__(self, data: Path, work: Path, file: Path) -> None:
        self.data, self.work, self.file = data, work, file
        self.config = compose(["model=smollm2-135m", "task=cnn_dm", "task.max_article_words=250"])
        self.tokenizer = load_tokenizer(self.config.model)
        self.loaded = load(self.config.model)
        self.model, self.found = self.loaded.model, read_object(file) or {}
        self.pad = 0
        device = str(self.model.device)
        self.here = Environment(**environment.code(), **environment.machine(device))
        validation = self.encoded("validation.jsonl.gz")
        self.losses = {
            "report": self.loss_of(validation[:REPORTED]),
            "choose": self.loss_of(validation[-CHOOSING:]),
        }

    def encoded(self, name: str) -> list[EncodedExample]:
        config = self.config.replace(task=self.config.task.replace(file=str(self.data / name)))
        workload = encode_workload(resolve(config), self.tokenizer)
        self.pad = workload.pad_token_id
        return workload.encoded or []

    def loss_of(self, examples: list[EncodedExample]) -> ReferenceLoss:
        return ReferenceLoss(examples, BatchSize(10), self.pad)

    def measure(
        self,
        name: str,
        kept: tuple[int, ...],
        fitter: PatchFitter | None = None,
        kind: str = "full",
        ridge: float = DEFAULT_RIDGE,
    ) -> None:
        """Measure one schedule with patches, unless it is known."""
        if name in self.found:
            return
        began = time.monotonic()
        adapter = fitter.fit([kept], PATCHES[kind], ridge) if fitter else None
        self.measure_adapter(
            name, kept, adapter, fitter and fitter.num_positions, time.monotonic() - began
        )

    def measure_adapter(
        self,
        name: str,
        kept: tuple[int, ...],
        adapter: SkipAdapter | None,
        tokens: int | None,
        seconds: float,
    ) -> None:
        """Measure one schedule with an adapter or none, and store the result."""
        decoder = Decoder(self.model, Plan.from_layers(30, kept), adapter=adapter)
        losses = {key: round(loss.of(decoder), 4) for key, loss in self.losses.items()}
        self.found[name] = {
            "kept_layers": kept,
            **losses,
            "tokens": tokens,
            "seconds": round(seconds, 1),
            "version": self.here.version,
        }
        write_atomic(self.file, json.dumps(self.found, indent=1) + "\n")
        print(name, losses, f"{seconds:.1f} s", flush=True)

    def fitter(self, examples: list[EncodedExample]) -> PatchFitter:
        return PatchFitter(self.model, examples, self.pad)

    def own(self, examples: list[EncodedExample]) -> list[EncodedExample]:
        """Return the prompts with the model's own greedy answers, which are stored."""
        context, file = (
            greedy_context(self.pad, self.config.decoding.max_new_tokens, 1),
            self.work / f"patches-own-{len(examples)}.jsonl",
        )
        prompts = [one.prompt_ids for one in examples]
        answers = generate_own_responses(
            self.model, prompts, OwnResponses(), context, file, ProgressCallback()
        )
        return [
            EncodedExample(prompt, found[0]) for prompt, found in zip(prompts, answers, strict=True)
        ]


def measure_options(one: Measurement) -> None:
    train = one.encoded("train.jsonl.gz")
    reference = one.fitter(train)
    own = one.fitter(one.own(train))
    both = reference.with_batches(reference.batches + own.batches)
    for count in OPTION_BLOCKS:
        kept = without_block(30, count, OPTION_BLOCKS[count])
        for name, ridge in OPTIONS.items():
            one.measure(f"options {count}: {name}", kept, reference, ridge=ridge)
        for name, fitter in (("own answers", own), ("references and own answers", both)):
            one.measure(f"options {count}: {name}", kept, fitter)


def measure_tokens(one: Measurement) -> None:
    train = one.encoded("train.jsonl.gz")
    reference, own = one.fitter(train), one.fitter(one.own(train))
    both = reference.batches + own.batches
    for count in OPTION_BLOCKS:
        for fewer in FEWER_TOKENS:
            fitter = reference.with_batches(both[fewer // 2 :: fewer] or both[:1])
            kept = without_block(30, count, OPTION_BLOCKS[count])
            one.measure(f"tokens {count}: full {fitter.num_positions}", kept, fitter)


def measure_kinds(one: Measurement) -> None:
    train = one.encoded("train.jsonl.gz")
    fitter = one.fitter(train)
    texts = [example.prompt_ids + example.response_ids for example in train[:32]]
    if "influence" not in one.found:
        one.found["influence"] = block_influence(one.model, texts, 8)
    ranked = sorted(range(30), key=lambda layer: (-one.found["influence"][layer], layer))
    one.measure("full", tuple(range(30)))
    sets = {(count, "unified"): schedule.even(30, count) for count in KEPT}
    sets |= {(count, "block_influence"): tuple(sorted(ranked[:count])) for count in KEPT}
    for count in KEPT:
        for first in spread(range(1, count), BLOCKS):
            kept = without_block(30, count, first)
            one.measure(f"block {count}: {first}", kept, fitter)
        blocks = [found for name, found in one.found.items() if name.startswith(f"block {count}:")]
        sets[count, "one_block"] = tuple(
            min(blocks, key=lambda found: found["choose"])["kept_layers"]
        )
    for (count, strategy), kept in sets.items():
        one.measure(f"kinds {count}: {strategy} none", kept)
        for kind, ridge in KINDS.items():
            one.measure(f"kinds {count}: {strategy} {kind}", kept, fitter, kind, ridge)


def measure_adapters(one: Measurement) -> None:
    """Measure the trained adapters of the recipe."""
    for file in sorted(one.work.glob("*/adapter.json")):
        adapter = SkipAdapter.load(file.parent)
        for kept in adapter.kept_sets:
            training = adapter.record["training"]
            name = f"adapters {len(kept)}: {file.parent.name}"
            if name not in one.found:
                one.measure_adapter(name, kept, adapter, training["tokens"], 0.0)


PARTS = {
    "options": measure_options,
    "tokens": measure_tokens,
    "kinds": measure_kinds,
    "adapters": measure_adapters,
}


def cell(found: dict, name: str) -> str:
    return f"{found[name]['report']:.2f}" if name in found else "–"


def pages(found: dict) -> dict[str, str]:
    """Return the tables of finished parts by name: decode losses in nats per token on the first 20
    validation articles.
    """
    measured = [name.split()[-1] for name in found if name.startswith("kinds")]
    columns = list(dict.fromkeys(measured))
    kinds = [
        [
            f"{count}/30",
            strategy,
            *(cell(found, f"kinds {count}: {strategy} {kind}") for kind in columns),
        ]
        for count in KEPT
        for strategy in ("unified", "block_influence", "one_block")
    ]
    sets = {name: found[name]["kept_layers"] for name in found if name.startswith("kinds")}
    trained = {
        tuple(found[name]["kept_layers"]): name for name in found if name.startswith("adapters")
    }
    for line in kinds:
        kept = sets.get(f"kinds {line[0].split('/')[0]}: {line[1]} none", ())
        line.append(cell(found, trained.get(tuple(kept), "")))
    names = list(dict.fromkeys(name.split(": ")[1] for name in found if name.startswith("options")))
    options = [
        [name, *(cell(found, f"options {count}: {name}") for count in (24, 20))] for name in names
    ]
    counts = sorted({int(name.split()[-1]) for name in found if name.startswith("tokens")})
    tokens = [
        [str(n), *(cell(found, f"tokens {count}: full {n}") for count in (24, 20))] for n in counts
    ]
    made = {
        "kinds": markdown_table(
            ["layers", "strategy", *columns, "adapter"],
            [line for line in kinds if set(line[2:]) != {"–"}],
        ),
        "options": markdown_table(["patch", "24 layers", "20 layers"], options),
        "tokens": markdown_table(["tokens", "24 layers", "20 layers"], tokens),
    }
    measured = [entry for entry in found.values() if "seconds" in entry]
    versions = dict.fromkeys(entry.get("version", "an earlier version") for entry in measured)
    note = (
        f"Decode loss in nats per token; full depth {cell(found, 'full')}. ulskip"
        f" {', '.join(versions)}."
    )
    return {name: f"{text}\n\n{note}\n" for name, text in made.items() if text.count("\n") > 1}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/skip_adapters"))
    parser.add_argument("--part", choices=tuple(PARTS), required=True)
    parser.add_argument(
        "--to", type=Path, default=Path("benchmarks/results/patches-smollm2-135m.json")
    )
    args = parser.parse_args()
    one = Measurement(args.data, args.work, args.to)
    with torch.inference_mode():
        PARTS[args.part](one)
    for name, text in pages(one.found).items():
        write_atomic(args.to.with_name(f"{args.to.stem}-{name}.md"), text)


if __name__ == "__main__":
    main()
