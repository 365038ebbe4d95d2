"""Time decode steps of engine=torch against transformers' own `generate`.

    python benchmarks/decode.py [--model smollm2-135m] [--pairs 7] [--tokens 64]

The table has decode tokens/s, relative to the view's own `generate` with the same layers. `layer by
layer` are the steps of models that the kernels have no step for. All ratios are medians of pairs
within one run: the sides take turns on the same prompts with the same number of new tokens. The
results go to benchmarks/results/decode-MODEL.json and .md. `ulskip bench` compares the other
engines, and measured with predicted speedups.
"""

import argparse
import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import torch
from transformers import GenerationConfig

from ulskip_cli.core import environment
from ulskip_cli.core.config import compose
from ulskip_cli.engines.decoder import DecodeContext, Decoder
from ulskip_cli.engines.loop import now
from ulskip_cli.engines.torch.kernels import PANELS
from ulskip_cli.engines.transformers.session import StepObserver
from ulskip_cli.experiments.intervals import ratio_interval
from ulskip_cli.experiments.preflight import resolve
from ulskip_cli.experiments.record import Environment
from ulskip_cli.experiments.workload import encode_workload, prompt_batches
from ulskip_cli.inference.loading import load, load_tokenizer
from ulskip_cli.report.tables import markdown_table
from ulskip_cli.strategies.plan import make_plan

RATIOS, BATCH_SIZES = (1, 2), (1, 8)
WARMUP = 2


def plain_generate(view, ids, mask, tokens, pad):
    """Measure the decode seconds of a model's own `generate`."""
    settings = GenerationConfig(
        do_sample=False,
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        pad_token_id=pad,
        eos_token_id=view.generation_config.eos_token_id,
    )
    watch = StepObserver(view.device, ids.shape, lambda count: None)
    with torch.inference_mode():
        view.generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=settings,
            stopping_criteria=[watch],
        )
    return now(view.device) - watch.first_at


def make_sides(decoder, decoding, tokens, pad):
    """Make the sides by name: functions that return the decode seconds of a batch."""
    context = DecodeContext(decoding, pad, tokens)
    views = replace(decoder._views, linear_backend=PANELS)

    def own(decoder):
        return lambda ids, mask: (
            decoder.generate(ids, mask, context, forced_length=tokens).decode_seconds
        )

    return {
        "generate": lambda ids, mask: plain_generate(decoder.view, ids, mask, tokens, pad),
        "layer by layer": own(decoder.changed(_views=views, _sessions={})),
        "torch": own(decoder.with_engine("torch")),
    }


def compare_engines(decoder, decoding, prompts, args, pad):
    """Time all sides in turns; return tokens/s and the ratio to `generate` of each."""
    sides = make_sides(decoder, decoding, args.tokens, pad)
    seconds = {name: [] for name in sides}
    for i, (ids, mask) in enumerate(prompts):
        names = list(sides)
        for name in names[i % len(names) :] + names[: i % len(names)]:
            spent = sides[name](ids, mask)
            if i >= WARMUP:
                seconds[name].append(spent)
    rows = []
    for name, spent in seconds.items():
        ratio = ratio_interval([a / b for a, b in zip(seconds["generate"], spent, strict=True)])
        new_tokens = len(prompts[0][0]) * (args.tokens - 1)
        rows.append(
            {
                "side": name,
                "tokens_per_second": new_tokens / sorted(spent)[len(spent) // 2],
                "over_generate": ratio.value,
                "low": ratio.low,
                "high": ratio.high,
            }
        )
    return rows


def as_markdown(result, facts, args):
    """Format the result as a table with its provenance."""
    heads = ["engine", "batch", "layers", "tokens/s", "over generate", "interval"]
    lines = [
        [
            *(str(row[key]) for key in ("side", "batch_size", "layers")),
            f"{row['tokens_per_second']:.0f}",
            f"{row['over_generate']:.2f}",
            f"{row['low']:.2f}-{row['high']:.2f}",
        ]
        for row in result["engines"]
    ]
    dtype = facts.pop("dtype")
    here = Environment(**facts)
    provenance = (
        f"{args.model}, {args.pairs} pairs of {args.tokens} tokens; ulskip {here.version},"
        f" {here.machine}, {dtype}."
    )
    return f"{markdown_table(heads, lines)}\n\n{provenance}\n"


def measure(args, loaded, config):
    """Time all sides for every batch size, at all layers and half of them."""
    work = encode_workload(resolve(config), load_tokenizer(config.model))
    rows = []
    for batch_size, ratio in product(BATCH_SIZES, RATIOS):
        prompts = prompt_batches(work.prompts, work.pad_token_id, batch_size, args.pairs + WARMUP)
        plan = make_plan(compose([f"model={args.model}", f"ratio={ratio}"]), loaded.metadata)
        layers = f"{len(plan.kept_layers)}/{plan.num_layers}"
        decoder = Decoder(loaded.model, plan)
        for row in compare_engines(decoder, config.decoding, prompts, args, work.pad_token_id):
            rows.append({"batch_size": batch_size, "layers": layers, **row})
            print(rows[-1], flush=True)
    counts = {"pairs": args.pairs, "new_tokens": args.tokens}
    return {"engines": rows, **counts}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=64)
    args = parser.parse_args()
    config = compose([f"model={args.model}"])
    loaded = load(config.model)
    result = measure(args, loaded, config)
    facts = {
        **environment.code(),
        **environment.machine(),
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
    }
    out = Path(__file__).parent / "results" / f"decode-{args.model}.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps({**result, "environment": facts}, indent=1) + "\n")
    out.with_suffix(".md").write_text(as_markdown(result, facts, args))
    print(f"written to {out}")


if __name__ == "__main__":
    torch.manual_seed(1)
    main()
