"""Time a prompt's pass through a model on this CPU, in turns: with products in float32, which a
CPU without instructions for the model's type gets, and with torch's own products.

    python benchmarks/prompt_products.py [--model smollm2-135m] [--tokens 260]

The page is benchmarks/results/prompt-products.md.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
from linear import provenance

from ulskip_cli.core.config import compose
from ulskip_cli.inference import float32_products
from ulskip_cli.inference.kv_cache import new_cache
from ulskip_cli.inference.loading import load
from ulskip_cli.inference.shallow_view import forward_with_cache
from ulskip_cli.report.tables import markdown_table

OUT = Path(__file__).parent / "results" / "prompt-products.md"
ROUNDS = 7


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--tokens", type=int, default=260)
    args = parser.parse_args()
    model = load(compose([f"model={args.model}"]).model).model
    ids = torch.arange(args.tokens)[None]
    few = float32_products.FEW_TOKENS

    @torch.inference_mode()
    def seconds(few_tokens: int) -> float:
        """Time a pass in which inputs of at most `few_tokens` get torch's own products. Sets the
        package's limit for it.
        """
        float32_products.FEW_TOKENS = few_tokens
        began = time.perf_counter()
        forward_with_cache(model, ids, torch.ones_like(ids), new_cache(model), last_only=True)
        return time.perf_counter() - began

    # [(in float32, torch's own)], without the first round, which warms up
    pairs = [(seconds(few), seconds(args.tokens)) for _ in range(ROUNDS + 1)][1:]
    ours, torchs = (statistics.median(side) for side in zip(*pairs, strict=True))
    ratio = statistics.median(own / other for own, other in pairs)
    heads = ["model", "type", "tokens", "in float32, s", "torch's own, s", "ratio"]
    dtype = str(model.dtype).removeprefix("torch.")
    figures = [f"{value:.2f}" for value in (ours, torchs, ratio)]
    table = markdown_table(heads, [[args.model, dtype, str(args.tokens), *figures]], 2)
    OUT.write_text(f"{table}\n\nMedians of {ROUNDS} turns. {provenance()}\n", "utf-8")
    print(OUT.read_text("utf-8"))


if __name__ == "__main__":
    main()
