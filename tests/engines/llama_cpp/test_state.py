"""Layers cut out of serialized keys and values."""

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ulskip_cli.core.errors import RunError
from ulskip_cli.engines.llama_cpp.session import with_layers


def serialized(layers, cells, transposed, streams=2, row=8):
    """Build a state with distinct bytes in every layer; the cells are in the last stream."""
    parts = [struct.pack("<III", 0xAF143CD8, 0, streams)] + [struct.pack("<I", 0)] * (streams - 1)
    if not cells:
        return b"".join([*parts, struct.pack("<I", 0)])
    parts += [
        struct.pack("<I", cells),
        *(struct.pack("<IIi", position, 1, 0) for position in range(cells)),
    ]
    parts.append(struct.pack("<II", transposed, len(layers)))
    for layer in layers:
        parts += [struct.pack("<iQ", 0, row), bytes([layer]) * row * cells]
    for layer in layers:
        head = struct.pack("<iII", 0, 4, row // 4) if transposed else struct.pack("<iQ", 0, row)
        parts += [head, bytes([100 + layer]) * row * cells]
    return b"".join(parts)


def as_array(data):
    return np.frombuffer(data, np.uint8)


@given(st.integers(1, 6), st.integers(1, 5), st.booleans(), st.integers(1, 3), st.data())
def test_the_rest_is_the_state_of_a_model_of_these_layers(
    num_layers,
    cells,
    transposed,
    streams,
    data,
):
    kept = sorted(data.draw(st.sets(st.integers(0, num_layers - 1), min_size=1)))
    state = serialized(range(num_layers), cells, transposed, streams)
    got = with_layers(as_array(state), kept, num_layers)
    assert got.tobytes() == serialized(kept, cells, transposed, streams)


@given(st.integers(0, 200), st.integers(0, 255))
def test_an_unknown_format_is_refused(cut, byte):
    state = serialized(range(3), 2, False)
    for broken in (state[: min(cut, len(state) - 1)], state + bytes([byte])):
        with pytest.raises(RunError, match=r"serializes.*prompt_layers=kept"):
            with_layers(as_array(broken), (0, 2), 3)
    with pytest.raises(RunError, match=r"serializes.*prompt_layers=kept"):
        with_layers(as_array(state), (0, 2), 4)
