"""Time the matrix products of two versions of the CPU kernels in turns: of a commit, and of this
checkout.

    python benchmarks/kernel_versions.py COMMIT [--model 1.1B]

A row of benchmarks/results/kernel-versions.md has the times of this checkout over those of the
commit. The weights rotate through copies that are larger than the caches, as in a decode step. One
thread is timed, because another one would wait for whatever else the machine does.
"""

import argparse
import statistics
import subprocess
import tempfile
from collections.abc import Callable
from itertools import cycle, product
from pathlib import Path
from typing import Any

import torch
from linear import COPIES_BYTES, provenance, timed
from torch import Tensor

from ulskip_cli.engines.torch import cpu_kernels, kernel_build

OUT = Path(__file__).parent / "results" / "kernel-versions.md"
SHAPES = {
    "SmolLM2-135M": ((49152, 576), (1536, 576), (576, 1536), (576, 576)),
    "1.1B": ((32000, 2048), (5632, 2048), (2048, 5632), (2048, 2048)),
}  # out, in features
ROWS, DTYPES = (1, 2, 8), (torch.bfloat16, torch.float32)
ROUNDS, SECONDS_PER_ROUND = 7, 0.02
HEADS = ("model", "dtype", "out x in", *(f"{rows} rows" for rows in ROWS))


def build(name: str, text: str, folder: Path) -> Any:
    """Compile and load kernels under a name of their own; return their operators."""
    source = folder / f"{name}.cpp"
    source.write_text(text.replace("TORCH_LIBRARY(ulskip,", f"TORCH_LIBRARY({name},"), "utf-8")
    kernel_build.SOURCE = source
    torch.ops.load_library(kernel_build.build(kernel_build.compiler()))
    return getattr(torch.ops, name)


def packed_weights(shape: tuple[int, int], dtype: torch.dtype) -> list[Tensor]:
    """Return copies of a packed weight that are larger than the caches."""
    packed = cpu_kernels.pack(torch.randn(shape).to(dtype))
    return [packed.clone() for _ in range(max(1, int(COPIES_BYTES / packed.nbytes)))]


def ratios(versions: list[Any], packed: list[Tensor], shape: tuple[int, int], rows: int) -> str:
    """Return the median and the quartiles of the time of the second version over the first."""
    out_features, in_features = shape
    hidden = torch.randn(rows, in_features).to(packed[0].dtype)

    def by(version: Any) -> Callable[[], Tensor]:
        weights = cycle(packed)
        return lambda: version.linear(hidden, next(weights), None, out_features)

    ways = [by(version) for version in versions]
    count = max(2, int(SECONDS_PER_ROUND / max(timed(way, len(packed)) for way in ways)))
    found = []
    for number in range(ROUNDS):
        order = ways if number % 2 else ways[::-1]
        spent = {way: timed(way, count) for way in order}
        found.append(spent[ways[1]] / spent[ways[0]])
    low, middle, high = statistics.quantiles(found, n=4)
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("commit")
    parser.add_argument("--model", choices=SHAPES)
    args = parser.parse_args()
    torch.set_num_threads(1)
    source = kernel_build.SOURCE
    where = f"{args.commit}:./{source.name}"
    before = subprocess.check_output(["git", "show", where], cwd=source.parent, text=True)
    lines = [f"| {' | '.join(HEADS)} |", "| --- | --- | --- |" + " ---: |" * len(ROWS)]
    with tempfile.TemporaryDirectory() as folder:
        texts = {"ulskip_before": before, "ulskip_after": source.read_text("utf-8")}
        versions = [build(name, text, Path(folder)) for name, text in texts.items()]
    for model, dtype in product([args.model] if args.model else SHAPES, DTYPES):
        for shape in SHAPES[model]:
            packed = packed_weights(shape, dtype)
            cells = (ratios(versions, packed, shape, rows) for rows in ROWS)
            name = str(dtype).removeprefix("torch.")
            lines.append(f"| {model} | {name} | {shape[0]} x {shape[1]} | {' | '.join(cells)} |")
            print(lines[-1], flush=True)
    note = (
        f"Time of the kernels over those of {args.commit}: median and quartiles of {ROUNDS} turns."
    )
    OUT.write_text("\n".join([*lines, "", note, "", provenance()]) + "\n", "utf-8")


if __name__ == "__main__":
    main()
