import torch

from ulskip_cli.experiments import benchmark as read_bandwidth


def test_the_fastest_way_to_read_counts(monkeypatch):
    clock = iter([0.0, 3.0, 10.0, 12.0] + [20.0, 25.0] * 4)
    monkeypatch.setattr(read_bandwidth, "READ_BYTES", 2**16)
    monkeypatch.setattr(read_bandwidth, "now", lambda device: next(clock))
    assert read_bandwidth.bandwidth_meter(torch.device("cpu"))() == 2**15
