"""Measure the decode loss of patches by kind and schedule: SmolLM2-135M on CNN/DM.

    python benchmarks/patches.py --data PATH/cnn_dm

PATH holds train.jsonl.gz and validation.jsonl.gz. Patches are fitted on training articles. Losses
are measured on the first 20 validation articles, and on 20 of the last 100, which choose the
skipped block. Finished measurements are kept in the JSON file.
"""

import argparse
import json
import time
from pathlib import Path

import torch

from ulskip_cli.core import environment, schedule
from ulskip_cli.core.config import compose
from ulskip_cli.core.correction import PATCHES
from ulskip_cli.core.files import read_object, write_atomic
from ulskip_cli.core.schedule import Schedule
from ulskip_cli.engines.base import Views
from ulskip_cli.engines.decoder import Decoder
from ulskip_cli.engines.scoring import ForcedTexts
from ulskip_cli.experiments.evaluate import encode_examples
from ulskip_cli.experiments.point import resolve
from ulskip_cli.experiments.record import Environment
from ulskip_cli.inference.batching import BatchSize
from ulskip_cli.inference.layerwise import state_similarity
from ulskip_cli.inference.loading import load, load_tokenizer
from ulskip_cli.inference.patch_fit import DEFAULT_RIDGE, PatchFitter
from ulskip_cli.report.tables import markdown_table
from ulskip_cli.strategies.search import spread, without_block
from ulskip_cli.tasks.encoding import EncodedExample

RESULTS = Path("benchmarks/results/patches-smollm2-135m.json")
LAYERS, REPORTED, CHOOSING = 30, 20, 20  # layers of the model, then numbers of articles
RIDGES = {"full": DEFAULT_RIDGE, "folded": 1.0}  # by kind
KEPT, BLOCKS = (27, 24, 20, 15), 8  # numbers of kept layers, and the blocks that are tried for each
STRATEGIES = ("unified", "block_influence", "one_block")


class Measurement:
    """A model with encoded articles, and the measurements that the JSON file keeps by name, such as
    `20 unified full`: the losses on the articles that report and that choose.
    """

    def __init__(self, data: Path) -> None:
        self.data, self.found = data, read_object(RESULTS) or {}
        self.config = compose(["model=smollm2-135m", "task=cnn_dm", "task.max_article_words=250"])
        self.tokenizer = load_tokenizer(self.config.model)
        self.model = load(self.config.model).model
        self.pad = 0
        self.here = Environment(**environment.versions(), **environment.machine("cpu"))
        validation = self.encoded("validation.jsonl.gz")
        self.texts = {
            name: ForcedTexts(
                [example.prompt_ids for example in examples],
                [example.response_ids for example in examples],
                BatchSize(10),
                self.pad,
            )
            for name, examples in (
                ("report", validation[:REPORTED]),
                ("choose", validation[-CHOOSING:]),
            )
        }
        self.train = self.encoded("train.jsonl.gz")
        self.fitter = PatchFitter(self.model, self.train, self.pad)

    def encoded(self, name: str) -> list[EncodedExample]:
        """Return the articles of a file as token ids; set `pad`, the id of padding."""
        config = self.config.replace(task=self.config.task.replace(file=str(self.data / name)))
        point = resolve(config)
        workload = encode_examples(point.data, point, self.tokenizer)
        self.pad = workload.pad_token_id
        return workload.encoded or []

    def measure(self, name: str, kept: tuple[int, ...], kind: str | None = None) -> None:
        """Measure and store the losses of one schedule under a name, unless they are stored; with
        patches of a kind if it is given.
        """
        if name in self.found:
            return
        began = time.monotonic()
        adapter = self.fitter.fit([kept], PATCHES[kind], RIDGES[kind]) if kind else None
        plan = Schedule.from_layers(LAYERS, kept)
        decoder = Decoder(Views.of(self.model, plan, adapter))
        losses = {
            key: round(texts.scores(decoder).decode_loss, 4) for key, texts in self.texts.items()
        }
        self.store(name, {"kept_layers": kept, **losses, "version": self.here.version})
        print(name, losses, f"{time.monotonic() - began:.1f} s", flush=True)

    def store(self, name: str, value: object) -> None:
        self.found[name] = value
        write_atomic(RESULTS, json.dumps(self.found, indent=1) + "\n")

    def run(self) -> None:
        """Measure full depth, the blocks, and every kind and strategy."""
        if "influence" not in self.found:
            texts = [example.prompt_ids + example.response_ids for example in self.train[:32]]
            similar = state_similarity(self.model, texts, 8)
            influence = [1 - similar[layer][layer + 1] for layer in range(LAYERS)]
            self.store("influence", influence)
        influence = self.found["influence"]
        ranked = sorted(range(LAYERS), key=lambda layer: (-influence[layer], layer))
        self.measure("full", tuple(range(LAYERS)))
        for count in KEPT:
            sets = {
                "unified": schedule.even(LAYERS, count),
                "block_influence": tuple(sorted(ranked[:count])),
                "one_block": self.best_block(count),
            }
            for strategy, kept in sets.items():
                self.measure(f"{count} {strategy} none", kept)
                for kind in RIDGES:
                    self.measure(f"{count} {strategy} {kind}", kept, kind)

    def best_block(self, count: int) -> tuple[int, ...]:
        """Measure blocks of skipped layers, and return the kept layers of the one that loses least
        with a patch on the articles that choose.
        """
        names = []
        for first in spread(range(1, count), BLOCKS):
            names.append(f"{count} block {first}")
            self.measure(names[-1], without_block(LAYERS, count, first), "full")
        best = min(map(self.found.get, names), key=lambda measured: measured["choose"])
        return tuple(best["kept_layers"])


def page(found: dict) -> str:
    """Return the table of decode losses in nats per token on the first 20 validation articles from
    the measurements by name.
    """
    columns = ["none", *RIDGES]
    lines = [
        [
            f"{count}/{LAYERS}",
            strategy,
            *(f"{found[f'{count} {strategy} {kind}']['report']:.2f}" for kind in columns),
        ]
        for count in KEPT
        for strategy in STRATEGIES
    ]
    versions = dict.fromkeys(entry["version"] for entry in found.values() if "version" in entry)
    note = (
        f"Decode loss in nats per token; full depth {found['full']['report']:.2f}. ulskip"
        f" {', '.join(versions)}."
    )
    return f"{markdown_table(['layers', 'strategy', *columns], lines, 2)}\n\n{note}\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    measurement = Measurement(parser.parse_args().data)
    with torch.inference_mode():
        measurement.run()
    write_atomic(RESULTS.with_suffix(".md"), page(measurement.found))


if __name__ == "__main__":
    main()
