"""Bytes of weights that decode steps read, and the speedups that they predict."""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_LAYER = re.compile(r"(?:^|\.)(\d+)\.")
_LOOKED_UP = ("embed", "wte", "wpe", "position")  # embedding tables, of which a step reads one row


class StoredTensor(NamedTuple):
    """A tensor in the header of a checkpoint."""

    shape: Sequence[int]
    num_bytes: int


@dataclass(frozen=True)
class WeightSizes:
    """Bytes of weights that a decode step reads at batch 1."""

    head_bytes: int  # h, what every step reads: final norm and output head
    layer_bytes: tuple[int, ...]  # what a step reads for each layer that it keeps
    bytes_per_patch: int = 0  # of the patch at each gap

    @property
    def total(self) -> int:
        """The bytes of layers and head."""
        return self.head_bytes + sum(self.layer_bytes)

    def scaled(self, layer_factor: float, head_factor: float) -> "WeightSizes":
        """Return the sizes in another format, whose layers and head have these factors; patches
        keep their size.
        """
        layer_bytes = tuple(round(size * layer_factor) for size in self.layer_bytes)
        return WeightSizes(round(self.head_bytes * head_factor), layer_bytes, self.bytes_per_patch)

    def predicted_speedup(self, kept: Sequence[int], heads: int = 1) -> float:
        """Return (head + all layers) / (heads * head + kept layers + patches), in bytes; a step
        runs the output head `heads` times.
        """
        patches = self.bytes_per_patch * len(gaps(kept, len(self.layer_bytes)))
        layers = sum(self.layer_bytes[i] for i in kept)
        return self.total / (heads * self.head_bytes + layers + patches)

    def staged_speedup(self, steps: Sequence[tuple[int, Sequence[int]]]) -> float:
        """Return the predicted speedup of stages; `steps` is that of `schedule.step_counts`."""
        total = sum(count for count, _ in steps)
        return total / sum(count / self.predicted_speedup(kept) for count, kept in steps)


def gaps(kept: Sequence[int], num_layers: int) -> list[int]:
    """Return the kept layers behind a gap; `num_layers` stands for one at the end.

    >>> gaps((0, 1, 4, 6), 8)
    [4, 6, 8]
    """
    return [
        after
        for before, after in zip([-1, *kept], [*kept, num_layers], strict=True)
        if after != before + 1
    ]


def sum_weight_sizes(
    tensors: Mapping[str, StoredTensor], num_layers: int, vocab_size: int
) -> WeightSizes | None:
    """Sum the bytes of tensors by layer and for the head, as names and shapes tell; return None
    unless exactly one stack has N layers.

    If two tensors have `vocab_size` rows, one of them is the head; a tied head may be missing.
    """
    # the bytes of each layer by the name before its number, e.g. {"model.layers": {0: 786432}}
    stacks: dict[str, Counter[int]] = defaultdict(Counter)
    head = list[int]()  # sizes of the tensors that can be the head
    rest = 0  # small tensors that every step reads, such as the final norm
    for name, (shape, num_bytes) in tensors.items():
        layer = _LAYER.search(name)
        is_matrix = len(shape) == 2
        if layer:
            stacks[name[: layer.start()]][int(layer[1])] += num_bytes
        elif is_matrix and vocab_size in shape:
            head.append(num_bytes)
        elif not is_matrix or not any(part in name for part in _LOOKED_UP):
            rest += num_bytes
    complete = [layers for layers in stacks.values() if sorted(layers) == list(range(num_layers))]
    if len(complete) != 1 or not head:
        return None
    return WeightSizes(min(head) + rest, tuple(complete[0][i] for i in range(num_layers)))
