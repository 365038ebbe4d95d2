"""Time decode steps: the engines against transformers' own `generate`, and skipping against its
predicted speedup.

    python benchmarks/decode.py [--model smollm2-135m] [--pairs 7] [--tokens 64] [--compile]

1. Decode tokens/s of each engine, relative to the view's own `generate` with a dynamic cache and
   the same layers, and the share of this machine's memory bandwidth at which weights were read.
2. Measured and predicted speedup of unified at layer ratios 2, 3 and 5, with the engine that `auto`
   chooses.

All values are medians of paired ratios within one run: the sides take turns on the same prompts
with the same number of new tokens. The results go to benchmarks/results/decode-MODEL.json and .md.
"""

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path

import torch
from transformers import CompileConfig, GenerationConfig

from ulskip_cli.core import environment
from ulskip_cli.core.config import baseline_config, compose
from ulskip_cli.core.config_schema import SpeedConfig
from ulskip_cli.engines.decoder import DecodeContext, Decoder
from ulskip_cli.engines.transformers.session import StepObserver
from ulskip_cli.experiments.benchmark import read_bytes_per_second
from ulskip_cli.experiments.paired_timing import measure_pairs
from ulskip_cli.experiments.preflight import resolve
from ulskip_cli.experiments.statistics import median_interval
from ulskip_cli.experiments.workload import encode_workload, prompt_batches
from ulskip_cli.inference.loading import load
from ulskip_cli.inference.timing import now
from ulskip_cli.strategies.plan import make_plan

RATIOS, BATCH_SIZES = (2, 3, 5), (1, 8)
WARMUP = 2
STATIC = {"cache_implementation": "static"}


def plain_generate(view, ids, mask, tokens, pad, **options):
    """Measure the decode seconds of a model's own `generate`."""
    settings = GenerationConfig(
        do_sample=False,
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        pad_token_id=pad,
        eos_token_id=view.generation_config.eos_token_id,
        **options,
    )
    watch = StepObserver(view.device, ids.shape, None)
    with torch.inference_mode():
        view.generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=settings,
            stopping_criteria=[watch],
        )
    return now(view.device) - watch.first_at


def make_sides(decoder, decoding, tokens, pad, with_compiled):
    """Make the sides by name: functions that return the decode seconds of a batch."""

    def engine(**changes):
        context, fast = (
            DecodeContext(replace(decoding, **changes), pad),
            decoder.with_engine("torch"),
        )
        return lambda ids, mask: (
            fast.generate(ids, mask, context, forced_length=tokens).decode_seconds
        )

    def own(**options):
        return lambda ids, mask: plain_generate(decoder.view, ids, mask, tokens, pad, **options)

    found = {
        "generate": own(),
        "generate, static cache": own(**STATIC, disable_compile=True),
        "torch": engine(compile="off"),
    }
    if with_compiled:
        everywhere = CompileConfig(mode="default")
        everywhere._compile_all_devices = True
        found["generate, compiled"] = own(**STATIC, compile_config=everywhere)
        found["torch, compiled layers"] = engine(compile="layers")
        found["torch, compiled"] = engine(compile="on")
    return found


def compare_engines(decoder, decoding, prompts, args, pad):
    """Time all sides in turns; returns tokens/s, steps/s and the ratio to `generate` of each."""
    sides = make_sides(decoder, decoding, args.tokens, pad, args.compile)
    seconds = {name: [] for name in sides}
    for i, (ids, mask) in enumerate(prompts):
        names = list(sides)
        for name in names[i % len(names) :] + names[: i % len(names)]:
            spent = sides[name](ids, mask)
            if i >= WARMUP:
                seconds[name].append(spent)
    rows = []
    for name, spent in seconds.items():
        ratio = median_interval([a / b for a, b in zip(seconds["generate"], spent, strict=True)])
        steps_per_second = (args.tokens - 1) / sorted(spent)[len(spent) // 2]
        rows.append(
            {
                "side": name,
                "tokens_per_second": len(prompts[0][0]) * steps_per_second,
                "over_generate": ratio.median,
                "low": ratio.low,
                "high": ratio.high,
                "coverage": ratio.coverage,
                "steps_per_second": steps_per_second,
            }
        )
    return rows


def as_markdown(result, facts, args):
    """Format the result as two tables with their provenance."""
    lines = ["| batch | layers | engine | tokens/s | over generate | interval | of bandwidth |"]
    lines += ["| ---: | ---: | --- | ---: | ---: | ---: | ---: |"]
    for row in result["engines"]:
        cells = [row["batch_size"], row["layers"], row["side"], f"{row['tokens_per_second']:.0f}"]
        cells += [
            f"{row['over_generate']:.2f}",
            f"{row['low']:.2f}-{row['high']:.2f}",
            f"{row['bandwidth_share']:.0%}",
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    lines += ["", "| batch | layers | predicted | measured | interval | measured / predicted |"]
    lines += ["| ---: | ---: | ---: | ---: | ---: | ---: |"]
    for row in result["predictions"]:
        measured = [f"{row[key]:.2f}" for key in ("predicted_speedup", "measured_speedup")]
        interval = f"{row['measured_speedup_low']:.2f}-{row['measured_speedup_high']:.2f}"
        share = f"{row['measured_speedup'] / row['predicted_speedup']:.2f}"
        lines.append(
            "| "
            + " | ".join(map(str, [row["batch_size"], row["layers"], *measured, interval, share]))
            + " |"
        )
    commit = (facts["git_commit"] or "no commit")[:10] + (
        " (modified)" if facts["git_dirty"] else ""
    )
    where = (
        f"{facts['processor']}, {facts['threads']} threads, {facts['instruction_set']},"
        f" {facts['dtype']}"
    )
    memory = f"reading memory reached {result['bytes_per_second'] / 1e9:.0f} GB/s"
    coverage = (
        f"intervals contain the median with probability {result['engines'][0]['coverage']:.1%}"
    )
    provenance = (
        f"{args.model}, {args.pairs} pairs of {args.tokens} tokens, {coverage}; ulskip at {commit},"
        f" {where}; {memory}."
    )
    return "\n".join([*lines, "", provenance]) + "\n"


def plan_at(args, ratio, loaded):
    """Make the plan of unified at a layer ratio, and the row cells that name it."""
    plan = make_plan(compose([f"model={args.model}", f"ratio={ratio}"]), loaded.metadata)
    return plan, {"layers": f"{len(plan.kept_layers)}/{plan.num_layers}"}


def measure(args, loaded, config):
    """Run both comparisons for every batch size."""
    weights = loaded.metadata.weights
    work = encode_workload(resolve(config), loaded.tokenizer)
    context = DecodeContext(config.decoding, work.pad_token_id)
    full = Decoder(loaded.model, make_plan(baseline_config(config), loaded.metadata))
    speed = SpeedConfig(pairs=args.pairs, warmup=WARMUP, new_tokens=args.tokens)
    bytes_per_second = read_bytes_per_second(loaded.model.device)
    result = {"engines": [], "predictions": [], "bytes_per_second": bytes_per_second}
    result["linear_backend"] = full.linear_backend(config.decoding).name
    for batch_size in BATCH_SIZES:
        prompts = prompt_batches(work.prompts, work.pad_token_id, batch_size, args.pairs + WARMUP)
        for ratio in (1, 2):
            plan, layers = plan_at(args, ratio, loaded)
            step_bytes = weights.head + sum(weights.layers[layer] for layer in plan.kept_layers)
            for row in compare_engines(
                Decoder(loaded.model, plan), config.decoding, prompts, args, work.pad_token_id
            ):
                share = step_bytes * row.pop("steps_per_second") / bytes_per_second
                result["engines"].append(
                    {"batch_size": batch_size, **layers, **row, "bandwidth_share": share}
                )
                print(result["engines"][-1], flush=True)
        for ratio in RATIOS:
            plan, layers = plan_at(args, ratio, loaded)
            timing = measure_pairs(
                full, Decoder(loaded.model, plan), prompts, context, speed
            ).timing()
            predicted = {"predicted_speedup": plan.predicted_speedup}
            result["predictions"].append(
                {"batch_size": batch_size, **layers, **predicted, **asdict(timing)}
            )
            print({**layers, **predicted, "measured_speedup": timing.measured_speedup}, flush=True)
    return {**result, "pairs": args.pairs, "new_tokens": args.tokens}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument(
        "--compile", action="store_true", help="time compiled steps too, at half the layers and all"
    )
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
