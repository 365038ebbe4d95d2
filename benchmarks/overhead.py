"""What the program adds to transformers' own decoding, and how close skipping comes to its prediction.

    python benchmarks/overhead.py [--model smollm2-135m] [--pairs 7] [--tokens 64]

1. `full` against a plain `model.generate` with the same prompts, settings and clock.
2. measured over predicted speedup of unified at layer ratios 2, 3, 5.

Both as medians of paired ratios within this run; the result goes to benchmarks/results/overhead-MODEL.json.
"""

import argparse
import json
from pathlib import Path

import torch

from ulskip_cli import environment
from ulskip_cli.config import baseline_of, compose, instantiate
from ulskip_cli.evaluation import prompt_batches
from ulskip_cli.generation.decode import Decoder
from ulskip_cli.generation.encoding import pad_id
from ulskip_cli.generation.pairs import measure_pairs
from ulskip_cli.models.load import load
from ulskip_cli.plan import make_plan
from ulskip_cli.schema import SpeedConfig
from ulskip_cli.timing import median_interval

RATIOS, BATCH_SIZES = (2, 3, 5), (1, 8)


class PlainGenerate(Decoder):
    """`model.generate` as anybody calls it: no view, no phases, the same clock."""

    def __init__(self, model, plan):
        super().__init__(model, plan)
        self._generator = model


def as_markdown(rows, args, facts):
    """The result as a table with its provenance."""
    lines = [
        "| batch | layers | predicted | measured | 95% | measured / predicted |",
        "| ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    notes = []
    for row in rows:
        if "kept" in row:
            interval = f"{row['measured_speedup_low']:.2f}-{row['measured_speedup_high']:.2f}"
            cells = [row["batch_size"], f"{row['kept']}/{row['num_layers']}", f"{row['predicted_speedup']:.2f}"]
            cells += [f"{row['measured_speedup']:.2f}", interval, f"{row['measured_over_predicted']:.2f}"]
            lines.append("| " + " | ".join(map(str, cells)) + " |")
        else:
            share = f"{row['full_over_generate']:.3f} ({row['low']:.3f}-{row['high']:.3f})"
            notes.append(f"batch {row['batch_size']}: {share}")
    commit = (facts["git_commit"] or "no commit")[:10]
    where = (
        f"{facts['processor']}, {facts['threads']} threads, {facts['instruction_set']}, {facts['dtype'].removeprefix('torch.')}"
    )
    told = f"{args.model}, {args.pairs} pairs of {args.tokens} tokens, ulskip at {commit}, {where}."
    speed = f"Decode tokens/s of `full` over a plain `model.generate`: {'; '.join(notes)}."
    return "\n".join([*lines, "", speed, told]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=64)
    args = parser.parse_args()
    config = compose([f"model={args.model}"])
    loaded = load(config.model)
    task = instantiate(config.task, "task")
    examples, pad = task.examples(), pad_id(loaded.tokenizer)
    full_plan = make_plan(baseline_of(config), loaded.facts)
    full = Decoder(loaded.model, full_plan)
    speed = SpeedConfig(pairs=args.pairs, warmup=2, new_tokens=args.tokens)
    rows = []
    for batch_size in BATCH_SIZES:
        prompts = prompt_batches(loaded.tokenizer, task, examples, batch_size, args.pairs + 2)
        plain = measure_pairs(PlainGenerate(loaded.model, full_plan), full, prompts, config.decoding, speed, pad)
        decode = median_interval(plain.ratios(lambda output: output.decode_seconds))
        row = {"batch_size": batch_size, "full_over_generate": decode.median, "low": decode.low, "high": decode.high}
        steps = args.tokens - 1
        row["generate_tokens_per_second"] = batch_size * steps / sorted(o.decode_seconds for o in plain.full)[args.pairs // 2]
        print(f"batch {batch_size}: full over plain generate {decode.median:.3f} ({decode.low:.3f}-{decode.high:.3f})")
        rows.append(row)
        for ratio in RATIOS:
            plan = make_plan(compose([f"model={args.model}", f"ratio={ratio}"]), loaded.facts)
            told = measure_pairs(full, Decoder(loaded.model, plan), prompts, config.decoding, speed, pad).row()
            share = told["measured_speedup"] / plan.predicted_speedup
            rows.append(
                {
                    "batch_size": batch_size,
                    "layer_ratio": plan.layer_ratio,
                    "kept": len(plan.kept_layers),
                    "num_layers": plan.num_layers,
                    "predicted_speedup": plan.predicted_speedup,
                    "measured_over_predicted": share,
                    **told,
                }
            )
            interval = f"{told['measured_speedup_low']:.2f}-{told['measured_speedup_high']:.2f}"
            print(
                f"batch {batch_size}: {len(plan.kept_layers)}/{plan.num_layers} layers, "
                f"predicted {plan.predicted_speedup:.2f}, measured {told['measured_speedup']:.2f} ({interval}), "
                f"share {share:.2f}"
            )
    out = Path(__file__).parent / "results" / f"overhead-{args.model}.json"
    out.parent.mkdir(exist_ok=True)
    facts = {**environment.code(), **environment.machine(), "dtype": str(loaded.model.dtype)}
    out.write_text(
        json.dumps({"rows": rows, "pairs": args.pairs, "new_tokens": args.tokens, "environment": facts}, indent=1) + "\n"
    )
    out.with_suffix(".md").write_text(as_markdown(rows, args, facts))
    print(f"written to {out}")


if __name__ == "__main__":
    torch.manual_seed(1)
    main()
