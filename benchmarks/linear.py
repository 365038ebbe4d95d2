"""Time the matrix products of a decode step on a CPU: our kernel in bfloat16 beside torch's own
ways and quantized kernels.

`python benchmarks/linear.py` writes benchmarks/results/linear.md. The shapes are those of
SmolLM2-135M. The weights rotate through copies that are larger than the caches, as in a decode
step. All ways are timed in turns. The machine should be idle.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from ulskip_cli.core import environment
from ulskip_cli.engines.torch import cpu_kernels
from ulskip_cli.experiments.record import Environment
from ulskip_cli.report.tables import markdown_table

OUT = Path(__file__).parent / "results" / "linear.md"
SHAPES = {
    "head": (49152, 576),
    "MLP, up": (1536, 576),
    "MLP, down": (576, 1536),
    "attention": (576, 576),
}  # out, in features
ROWS = (1, 8)  # the batch size
COPIES_BYTES = 60e6  # of all copies of a weight
ROUNDS, SECONDS_PER_ROUND = 9, 0.02
GROUP = 32  # weights that share a scale in int4


OURS, OTHERS = "ours", ("oneDNN, packed", "torch", "int8", "int4")


def ways(out_features: int, in_features: int, rows: int) -> dict[str, Callable[[], Tensor]]:
    """Return a function for each way that this processor supports, which multiplies with the next
    copy of the weight.
    """
    weights = [
        torch.randn(out_features, in_features).bfloat16()
        for _ in range(max(1, int(COPIES_BYTES / (2 * out_features * in_features))))
    ]
    hidden = torch.randn(rows, in_features).bfloat16()

    def by(
        prepare: Callable[[Tensor], object], multiply: Callable[[object], Tensor]
    ) -> Callable[[], Tensor] | None:
        try:
            copies: Iterator[object] = cycle([prepare(weight) for weight in weights])
        except RuntimeError:  # it needs other instructions
            return None
        return lambda: multiply(next(copies))

    mkldnn, aten = torch.ops.mkldnn, torch.ops.aten
    every = {
        OURS: by(
            cpu_kernels.pack, lambda one: torch.ops.ulskip.linear(hidden, one, None, out_features)
        ),
        "oneDNN, packed": by(
            lambda weight: mkldnn._reorder_linear_weight(weight, None),
            lambda one: mkldnn._linear_pointwise(hidden, one, None, "none", [], ""),
        ),
        "torch": by(lambda weight: weight, lambda one: functional.linear(hidden, one)),
        "int8": by(_int8, lambda one: aten._weight_int8pack_mm(hidden, *one)),
        "int4": by(
            _int4, lambda one: aten._weight_int4pack_mm_for_cpu(hidden, one[0], GROUP, one[1])
        ),
    }
    return {name: way for name, way in every.items() if way}


def _int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    scales = weight.float().abs().amax(1) / 127
    return (weight.float() / scales[:, None]).round().to(torch.int8), scales.bfloat16()


def _int4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Pack random weights of the same shape, because only their time counts."""
    values = torch.randint(0, 16, weight.shape, dtype=torch.int32)
    scales = torch.rand(weight.shape[1] // GROUP, weight.shape[0], 2).bfloat16()
    return torch.ops.aten._convert_weight_to_int4pack_for_cpu(values, 2), scales


def microseconds(every: dict[str, Callable[[], Tensor]]) -> dict[str, float]:
    """Return the median time of a product for each way, over rounds in turns."""
    once = {name: timed(way, 3) for name, way in every.items()}
    times: dict[str, list[float]] = {name: [] for name in every}
    for _ in range(ROUNDS):
        for name, way in every.items():
            times[name].append(timed(way, max(3, int(SECONDS_PER_ROUND / once[name]))))
    return {name: 1e6 * statistics.median(found) for name, found in times.items()}


def provenance() -> str:
    """Return the version, the commit and the machine as a sentence."""
    here = Environment(**environment.code(), **environment.machine("cpu"))
    return f"ulskip {here.version}, {here.machine}."


def timed(way: Callable[[], Tensor], count: int) -> float:
    began = time.perf_counter()
    for _ in range(count):
        way()
    return (time.perf_counter() - began) / count


def main() -> None:
    reason = cpu_kernels.load_kernels()
    if reason:
        raise SystemExit(f"expected our kernel for comparison, got none: {reason}")
    lines = []
    for part, (out_features, in_features) in SHAPES.items():
        for rows in ROWS:
            found = microseconds(ways(out_features, in_features, rows))
            others = [
                f"{found[OURS] / found[name]:.2f}" if name in found else "–" for name in OTHERS
            ]
            weight = f"{out_features} x {in_features}"
            lines.append([part, weight, str(rows), f"{found[OURS]:.0f}", *others])
            print(*lines[-1], flush=True)
    heads = ["product", "weight", "batch", "ours, µs", *OTHERS]
    note = (
        "Speed of each way over our kernel in bfloat16, medians in turns; a dash where this"
        " processor lacks the instructions. int8 and int4: torch's kernels for such weights."
    )
    page = "\n\n".join([markdown_table(heads, lines, 2), note, provenance()])
    OUT.write_text(page + "\n", "utf-8")


if __name__ == "__main__":
    main()
