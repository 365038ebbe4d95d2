"""Skipped layers cut out of the keys and values of a sequence, as llama.cpp serializes them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ulskip_cli.core.errors import RunError


def with_layers(
    state: np.ndarray[Any, Any],
    kept: Sequence[int],
    num_layers: int,
) -> np.ndarray[Any, Any]:
    """Return the serialized state of a sequence with only the layers `kept`.

    The format is that of llama.cpp's KV cache: a header; for each stream its cells, then keys, then
    values by layer. Raises RunError if the format does not describe every byte.
    """
    try:
        data = _with_layers(_StateReader(state.tobytes()), kept, num_layers)
    except _UnknownFormat:
        raise RunError(
            "expected the format in which llama-cpp-python 0.3.36 serializes keys and values, got "
            "another; use prompt_layers=kept, or install that version"
        ) from None
    return np.frombuffer(data, np.uint8)


def _with_layers(reader: "_StateReader", kept: Sequence[int], num_layers: int) -> bytes:
    # magic number, sequence, number of streams
    parts = [reader.take(8), streams := reader.take(4)]
    for _ in range(_number(streams, 1, 4096)):
        parts.append(cells := reader.take(4))
        num_cells = _number(cells)
        for _ in range(num_cells):
            parts += [reader.take(4), sequences := reader.take(4)]  # position, number of sequences
            parts.append(reader.take(4 * _number(sequences, 0, 1)))
        if not num_cells:
            continue
        parts.append(transposed := reader.take(4))
        _number(reader.take(4), num_layers, num_layers)
        parts.append(len(kept).to_bytes(4, "little"))
        for kind in ("keys", "values"):
            layers = []
            for _ in range(num_layers):
                # type, then the bytes of a row, or of an element and the number of elements
                head = reader.take(12)
                if kind == "values" and _number(transposed, 0, 1):
                    size = _number(head[4:8]) * _number(head[8:])
                else:
                    size = _number(head[4:])
                layers.append(head + reader.take(num_cells * size))
            parts += [layers[layer] for layer in kept]
    reader.finish()
    return b"".join(parts)


class _UnknownFormat(Exception):
    pass


class _StateReader:
    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def take(self, size: int) -> bytes:
        """Return the next bytes."""
        self._at += size
        if self._at > len(self._data):
            raise _UnknownFormat
        return self._data[self._at - size : self._at]

    def finish(self) -> None:
        """Check that no byte is left."""
        if self._at != len(self._data):
            raise _UnknownFormat


def _number(data: bytes, low: int = 0, high: int = 2**63) -> int:
    value = int.from_bytes(data, "little")
    if not low <= value <= high:
        raise _UnknownFormat
    return value
