import sys

import pytest
import torch

from ulskip_cli.engines import loop

CPU, SIZE = torch.device("cpu"), 200_000_000


def test_an_allocation_that_was_freed_counts():
    loop.reset_peak(CPU)
    before = loop.peak_bytes(CPU)
    torch.ones(SIZE // 4)
    assert loop.peak_bytes(CPU) > before + SIZE // 2


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux resets the peak")
def test_a_peak_before_the_reset_does_not_count():
    torch.ones(SIZE // 4)
    peak = loop.peak_bytes(CPU)
    loop.reset_peak(CPU)
    assert loop.peak_bytes(CPU) < peak - SIZE // 2
