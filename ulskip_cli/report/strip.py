"""A schedule as a picture: one cell a layer."""

from collections.abc import Sequence

KEPT, SKIPPED = "█", "·"


def strip(num_layers: int, kept: Sequence[int]) -> str:
    """Kept layers as blocks, skipped ones as dots, the first layer on the left.

    >>> strip(8, (0, 2, 5, 7))
    '█·█··█·█'
    """
    return "".join(KEPT if i in kept else SKIPPED for i in range(num_layers))


def ruler(num_layers: int, every: int = 5) -> str:
    """Layer numbers to stand under a strip.

    >>> ruler(12)
    '0    5    10'
    """
    return "".join(str(i).ljust(every) for i in range(0, num_layers, every)).rstrip()


def ranges(layers: Sequence[int]) -> str:
    """Layers in words, neighbours joined.

    >>> ranges((0, 1, 2, 5, 7, 8))
    '0-2, 5, 7, 8'
    """
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)
