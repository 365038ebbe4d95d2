"""Which of a checkpoint's tensors a view keeps, and under which names. Imports no torch."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from ulskip_cli.errors import UsageError

_LAYER = re.compile(r"^((?:[^.]+\.)*?)(\d+)\.")  # the outermost number: a layer's experts are numbered further in


def renamed(names: Iterable[str], num_layers: int, kept: Sequence[int]) -> dict[str, str]:
    """The new name of every tensor that stays, by its name in the source.

    Tensors outside the stack of decoder layers keep their names; those of layers beyond N (heads that predict
    further tokens) go with the layers that are skipped.

    >>> renamed(["h.0.w", "h.1.w", "h.2.w", "norm"], 3, (0, 2))
    {'h.0.w': 'h.0.w', 'h.2.w': 'h.1.w', 'norm': 'norm'}

    Args:
        names: of all tensors of the checkpoint.
        num_layers: N.
        kept: layers, ascending.

    Raises:
        UsageError: the names show no stack of N layers, or several.
    """
    names = list(names)
    prefix = _stack(names, num_layers)
    position = {layer: i for i, layer in enumerate(kept)}
    chosen: dict[str, str] = {}
    for name in names:
        match = _LAYER.match(name)
        if match is None or match[1] != prefix:
            chosen[name] = name
        elif int(match[2]) in position:
            chosen[name] = f"{prefix}{position[int(match[2])]}.{name[match.end() :]}"
    return chosen


def shards(sizes: Mapping[str, int], limit: int) -> list[list[str]]:
    """Names in their order, parted so that each part's bytes stay within the limit where a single tensor allows it.

    >>> shards({"a": 3, "b": 3, "c": 5, "d": 1}, 6)
    [['a', 'b'], ['c', 'd']]
    """
    parts: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if parts[-1] and filled + size > limit:
            parts.append([])
            filled = 0
        parts[-1].append(name)
        filled += size
    return parts


def _stack(names: Sequence[str], num_layers: int) -> str:
    """What stands before the layer's number."""
    found: dict[str, set[int]] = defaultdict(set)
    for name in names:
        match = _LAYER.match(name)
        if match:
            found[match[1]].add(int(match[2]))
    layers = set(range(num_layers))
    exact = [prefix for prefix, numbers in found.items() if numbers == layers]
    candidates = exact or [prefix for prefix, numbers in found.items() if numbers > layers]
    if len(candidates) != 1:
        raise UsageError(f"expected one stack of {num_layers} layers among the names of the tensors, found {len(candidates)}")
    return candidates[0]
