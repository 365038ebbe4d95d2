import torch

from ulskip_cli.inference.timing import now


def test_the_clock_is_monotonic():
    device = torch.device("cpu")
    assert now(device) <= now(device)
