"""Measure the decode loss of gap patches: kinds by schedule.

    python benchmarks/patches.py --data PATH/cnn_dm --work runs/skip_adapters --part kinds|adapters

PATH holds train.jsonl.gz and validation.jsonl.gz. Patches are fitted on training articles. Losses
are measured on the first 20 validation articles, and on 20 of the last 100, which choose blocks.
Finished measurements are kept in the JSON file.
"""

import argparse
import json
import time
from itertools import product
from pathlib import Path

import torch

from ulskip_cli.core import environment, schedule
from ulskip_cli.core.config import compose
from ulskip_cli.core.correction import PATCHES
from ulskip_cli.core.files import read_object, write_atomic
from ulskip_cli.engines.decoder import Decoder
from ulskip_cli.engines.scoring import ReferenceLoss
from ulskip_cli.experiments.preflight import resolve
from ulskip_cli.experiments.record import MISSING
from ulskip_cli.experiments.results import ResultsFolder
from ulskip_cli.experiments.workload import encode_workload
from ulskip_cli.inference.batching import BatchSize
from ulskip_cli.inference.layerwise import block_influence
from ulskip_cli.inference.loading import load, load_tokenizer
from ulskip_cli.inference.patch_fit import DEFAULT_RIDGE, PatchFitter
from ulskip_cli.inference.skip_adapter import SkipAdapter
from ulskip_cli.strategies.plan import Plan
from ulskip_cli.strategies.search import spread, without_block
from ulskip_cli.tasks.encoding import EncodedExample

REPORTED, CHOOSING = 20, 20
KINDS = {"full": 0.1, "folded": 1.0}
KEPT, BLOCKS = (27, 24, 20, 15), 8


class Measurement:
    """A model with encoded articles, and the JSON file that keeps finished measurements."""

    def __init__(self, data: Path, work: Path, file: Path) -> None:
        self.data, self.work, self.file = data, work, file
        self.config = compose(["model=smollm2-135m", "task=cnn_dm", "task.max_article_words=250"])
        self.tokenizer = load_tokenizer(self.config.model)
        self.loaded = load(self.config.model)
        self.model, self.found = self.loaded.model, read_object(file) or {}
        self.pad = 0
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
        }
        self.found["environment"] = {
            **environment.code(),
            **environment.machine(str(self.model.device)),
        }
        write_atomic(self.file, json.dumps(self.found, indent=1) + "\n")
        print(name, losses, f"{seconds:.1f} s", flush=True)

    def fitter(self, examples: list[EncodedExample]) -> PatchFitter:
        return PatchFitter(self.model, examples, self.pad)


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
    sets |= {(count, "search"): found for count in KEPT if (found := searched(count))}
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


def searched(count: int) -> tuple[int, ...] | None:
    """Read the layers that a search with patches found, from the calibrations of the recipe."""
    folder = ResultsFolder.of(compose(["name=skip_adapters"])).path / "calibrations"
    for file in sorted(folder.glob("*.json")):
        found = json.loads(file.read_text("utf-8"))
        layers = found.get("options", {}).get("layers")
        if layers and len(layers) == count:
            return tuple(layers)
    return None


PARTS = {
    "kinds": measure_kinds,
    "adapters": measure_adapters,
}


def table(heads: list[str], lines: list[list[str]]) -> str:
    rule = ["---", *["---:"] * (len(heads) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (heads, rule, *lines))


def cell(found: dict, name: str) -> str:
    return f"{found[name]['report']:.2f}" if name in found else MISSING


def page(found: dict) -> str:
    """Return the table of the decode losses in nats per token on the first 20 validation
    articles.
    """
    measured = [name.split()[-1] for name in found if name.startswith("kinds")]
    columns = list(dict.fromkeys(measured))
    trained = {
        tuple(found[name]["kept_layers"]): name for name in found if name.startswith("adapters")
    }
    lines = []
    for count, strategy in product(KEPT, ("unified", "block_influence", "one_block", "search")):
        key = f"kinds {count}: {strategy}"
        kept = tuple(found.get(f"{key} none", {}).get("kept_layers", ()))
        names = [*(f"{key} {kind}" for kind in columns), trained.get(kept, "")]
        losses = [cell(found, name) for name in names]
        if set(losses) != {MISSING}:
            lines.append([f"{count}/30", strategy, *losses])
    commit = found["environment"]["git_commit"][:10]
    note = f"Decode loss in nats per token; full depth {cell(found, 'full')}. ulskip {commit}."
    return f"{table(['layers', 'strategy', *columns, 'adapter'], lines)}\n\n{note}\n"


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
    write_atomic(args.to.with_name(f"{args.to.stem}-kinds.md"), page(one.found))


if __name__ == "__main__":
    main()
