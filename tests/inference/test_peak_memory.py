import torch

from ulskip_cli.inference.peak_memory import PeakMemory


def test_a_temporary_allocation_counts():
    import time

    with PeakMemory(torch.device("cpu")) as quiet:
        time.sleep(0.1)
    with PeakMemory(torch.device("cpu")) as busy:
        block = torch.ones(50_000_000)
        time.sleep(0.2)
        del block
    assert busy.peak_bytes > quiet.peak_bytes + 100_000_000
