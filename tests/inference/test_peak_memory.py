import sys

import pytest
import torch

from ulskip_cli.inference import peak_memory

CPU, SIZE = torch.device("cpu"), 200_000_000


def test_an_allocation_that_was_freed_counts():
    peak_memory.reset(CPU)
    before = peak_memory.peak_bytes(CPU)
    torch.ones(SIZE // 4)
    assert peak_memory.peak_bytes(CPU) > before + SIZE // 2


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux resets the peak")
def test_a_peak_before_the_reset_does_not_count():
    torch.ones(SIZE // 4)
    peak = peak_memory.peak_bytes(CPU)
    peak_memory.reset(CPU)
    assert peak_memory.peak_bytes(CPU) < peak - SIZE // 2
