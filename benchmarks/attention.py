"""Time the attention of a decode step and of checks of drafts on a CPU: our kernel beside torch's.

`python benchmarks/attention.py` writes benchmarks/results/attention.md. The machine should be idle.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from linear import microseconds, provenance
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from ulskip_cli.engines.torch import cpu_kernels
from ulskip_cli.report.tables import markdown_table

OUT = Path(__file__).parent / "results" / "attention.md"
SHAPES = {
    "9 / 3 of 64": (9, 3, 64),
    "12 / 12 of 64": (12, 12, 64),
    "32 / 8 of 128": (32, 8, 128),
}  # query and kv heads, width
CASES = ((1, 128), (1, 2048), (8, 128), (8, 1024))  # batch size and length
# New tokens in a check of drafts, and positions in the cache.
QUERIES, LENGTHS = (2, 3, 4, 5, 8, 13), (64, 512)
Ways = dict[str, Callable[[], Tensor]]
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def ways(shape: tuple[int, int, int], batch: int, length: int, dtype: torch.dtype) -> Ways:
    """Return a function for each way to attend once."""
    heads, kv_heads, width = shape
    query = torch.randn(batch, 1, heads, width).to(dtype).transpose(1, 2)
    keys, values = (
        torch.randn(batch, kv_heads, length + 64, width).to(dtype)[:, :, :length] for _ in range(2)
    )
    # All queries of a key-value head in one product.
    grouped = query.reshape(batch, kv_heads, heads // kv_heads, width)
    return {
        "ours": lambda: torch.ops.ulskip.attention(query, keys, values, None, width**-0.5),
        "torch": lambda: scaled_dot_product_attention(
            query, keys, values, enable_gqa=heads != kv_heads
        ),
        "torch, grouped": lambda: scaled_dot_product_attention(grouped, keys, values),
    }


def ways_to_check(
    shape: tuple[int, int, int], queries: int, length: int, dtype: torch.dtype
) -> Ways:
    """Return a function for each way to attend once with several queries: our kernel, and the call
    of transformers.
    """
    heads, kv_heads, width = shape
    query = torch.randn(1, queries, heads, width).to(dtype).transpose(1, 2)
    keys, values = (
        torch.randn(1, kv_heads, length + 64, width).to(dtype)[:, :, :length] for _ in range(2)
    )
    mask = torch.zeros(1, 1, queries, length, dtype=dtype)
    module = nn.Module()
    module.num_key_value_groups = heads // kv_heads
    return {
        "ours": lambda: torch.ops.ulskip.attention(query, keys, values, mask, width**-0.5),
        "torch": lambda: sdpa_attention_forward(module, query, keys, values, mask)[0],
    }


def checks() -> str:
    """Return a table of the speed of checks, by the number of queries."""
    heads, lines = ["heads", "dtype", "length", *map(str, QUERIES)], []
    for name, shape in SHAPES.items():
        for called, dtype in DTYPES.items():
            for length in LENGTHS:
                found = [
                    microseconds(ways_to_check(shape, count, length, dtype)) for count in QUERIES
                ]
                ratios = [f"{one['ours'] / one['torch']:.2f}" for one in found]
                lines.append([name, called, str(length), *ratios])
                print(*lines[-1], flush=True)
    return markdown_table(heads, lines, 2)


def main() -> None:
    reason = cpu_kernels.load_kernels()
    if reason:
        raise SystemExit(f"expected our kernel for comparison, got none: {reason}")
    heads = ["heads", "dtype", "batch", "length", "ours, µs", "torch", "torch, grouped"]
    lines = []
    for name, shape in SHAPES.items():
        for called, dtype in DTYPES.items():
            for batch, length in CASES:
                found = microseconds(ways(shape, batch, length, dtype))
                others = [f"{found['ours'] / found[way]:.2f}" for way in heads[5:]]
                ours = f"{found['ours']:.0f}"
                lines.append([name, called, str(batch), str(length), ours, *others])
                print(*lines[-1], flush=True)
    note = (
        "Speed of torch's attention over ours, medians in turns. Heads: of queries, of keys and"
        " values, and their width."
    )
    parts = [markdown_table(heads, lines, 2), note]
    note = (
        "The same for 2 to 13 queries of one sequence, in the call of transformers, which copies"
        " shared keys and values."
    )
    parts += [checks(), note, provenance()]
    OUT.write_text("\n\n".join(parts) + "\n", "utf-8")


if __name__ == "__main__":
    main()
