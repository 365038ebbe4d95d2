"""Compare the step time of three policies for the keys above an early exit: recompute, propagate,
ragged cache.

    python benchmarks/missing_kv.py [--model tiny]

`recompute` is the policy of ulskip, `propagate` that of CALM. All policies exit at the same random
depths, on the same tokens, with the same checks. Times are CPU seconds of one thread, which other
programs hardly affect. A ragged cache costs no extra time; this script fills its holes with zeros,
so its tokens are meaningless but its time is valid.
"""

import argparse
import json
import random
import time
from contextlib import suppress
from pathlib import Path
from statistics import median

import torch

from ulskip_cli.core import environment
from ulskip_cli.core.config import compose
from ulskip_cli.core.schedule import ExitRule
from ulskip_cli.engines.base import BatchRequest
from ulskip_cli.engines.early_exit import ExitSteps, confidence_of
from ulskip_cli.engines.torch.packed_linear import choose_linear_backend, packed
from ulskip_cli.experiments.preflight import resolve
from ulskip_cli.experiments.record import Environment
from ulskip_cli.experiments.workload import encode_workload
from ulskip_cli.inference import kv_cache, shallow_view
from ulskip_cli.inference.layerwise import LayerwiseModel
from ulskip_cli.inference.loading import load, load_tokenizer
from ulskip_cli.report.tables import markdown_table

POLICIES = ("recompute", "propagate", "ragged")
NEW_TOKENS, PROMPTS = 32, 24
DEPTHS = {  # how the exit depth of a step is drawn in a model of n layers
    "any layer": lambda draw, n: draw.randint(1, n),
    "the middle third": lambda draw, n: draw.randint(n // 3 + 1, 2 * n // 3),
    "first or last": lambda draw, n: draw.choice((1, n)),
}


class KeysWritten(Exception):
    """The keys and values of a layer have been computed, and the rest of the layer is not
    needed.
    """


class ReplayedSteps(ExitSteps):
    """Decode steps that exit at given depths."""

    def __init__(self, policy, depths, *args):
        super().__init__(*args)
        self.policy, self.depths, self.step, self.stops = policy, depths, -1, False
        start = self.positions.prompt_len
        for layer in self.cache.layers:
            layer.keys[:, :, start:] = layer.values[:, :, start:] = 0
            layer.update = self.ending_with(layer.update)

    def ending_with(self, write):
        def update(*args, **options):
            held = write(*args, **options)
            if self.stops:
                raise KeysWritten
            return held

        return update

    def _enter(self, start):
        self.entry = super()._enter(start)
        return self.entry

    def _confident_logits(self, hidden, threshold):
        logits = self.layerwise.logits(hidden)
        # computed and synchronised as in real decoding, then ignored
        float(confidence_of(logits).min())
        self.checked += 1
        return logits if self.checked == self.depths[self.step] else None

    def __call__(self, tokens):
        self.step, self.checked = self.step + 1, 0
        logits = super().__call__(tokens)
        depth, at = self.depths[self.step], self.cursor.length
        if self.policy != "recompute" and depth < self.rule.num_layers:
            hidden = self._pending[depth].pop()
            if self.policy == "propagate":
                self.stops, self.cursor.length = True, at - 1
                for index in range(depth, self.rule.num_layers):
                    with suppress(KeysWritten):
                        self.layerwise.layer(index, hidden, self.entry)
                self.stops, self.cursor.length = False, at
        return logits


def seconds(policy, depths, model, layerwise, prompt, config):
    """Measure the CPU seconds of one decode step."""
    ids, rule = (
        torch.tensor([prompt]),
        ExitRule(len(layerwise.layers), len(layerwise.layers), 0.5, NEW_TOKENS),
    )
    mask, cache = torch.ones_like(ids), kv_cache.new_cache(model)
    with torch.inference_mode():
        shallow_view.forward_with_cache(model, ids, mask, cache)
        request = BatchRequest(ids, mask, config.decoding, 0, [], NEW_TOKENS + 1, True)
        steps = ReplayedSteps(policy, depths, model, layerwise, cache, request, rule)
        began = time.process_time()
        for token in range(NEW_TOKENS):
            steps(torch.tensor([[token]]))
    return (time.process_time() - began) / NEW_TOKENS


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="tiny")
    args = parser.parse_args()
    torch.set_num_threads(1)
    config = compose([f"model={args.model}", "model.dtype=float32", f"limit={PROMPTS}"])
    loaded, draw = load(config.model), random.Random(0)
    prompts = encode_workload(resolve(config), load_tokenizer(config.model)).prompts
    layerwise, rows = (
        LayerwiseModel(packed(loaded.model, choose_linear_backend(loaded.model).name)),
        [],
    )
    for kind, drawn in DEPTHS.items():
        spent = {policy: [] for policy in POLICIES}
        for prompt in prompts:
            depths = [drawn(draw, loaded.metadata.num_layers) for _ in range(NEW_TOKENS)]
            for policy in draw.sample(POLICIES, len(POLICIES)):
                spent[policy].append(
                    seconds(policy, depths, loaded.model, layerwise, prompt, config)
                )
        for policy in POLICIES:
            over = [own / least for own, least in zip(spent[policy], spent["ragged"], strict=True)]
            rows.append(
                {
                    "exits": kind,
                    "policy": policy,
                    "step_seconds": median(spent[policy]),
                    "over_ragged": median(over),
                }
            )
    facts = {**environment.code(), **environment.machine()}
    out = Path(__file__).parent / "results" / f"missing-kv-{args.model}"
    heads = ["exits at", "keys above them", "ms a step, one thread", "over ragged"]
    lines = [
        [r["exits"], r["policy"], f"{1e3 * r['step_seconds']:.2f}", f"{r['over_ragged']:.2f}"]
        for r in rows
    ]
    here = Environment(**facts)
    note = (
        f"{args.model}, {PROMPTS} prompts of {NEW_TOKENS} tokens, ulskip {here.version},"
        f" {here.machine}, float32."
    )
    text = f"{markdown_table(heads, lines, 2)}\n\n{note}\n"
    print(text)
    out.with_suffix(".md").write_text(text)
    out.with_suffix(".json").write_text(
        json.dumps({"rows": rows, "environment": facts}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
