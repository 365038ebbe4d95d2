import torch

from ulskip_cli.experiments import read_bandwidth


def test_a_rate_is_measured(monkeypatch):
    monkeypatch.setattr(read_bandwidth, "READ_BYTES", 2**16)
    assert read_bandwidth.read_bytes_per_second(torch.device("cpu")) > 0


def test_the_best_of_several_rounds_counts(monkeypatch):
    clock = iter([0.0, 3.0, 10.0, 12.0, 20.0, 25.0, 30.0, 34.0, 40.0, 46.0])
    monkeypatch.setattr(read_bandwidth, "now", lambda device: next(clock))
    calls = []
    assert read_bandwidth._best_seconds(torch.device("cpu"), lambda: calls.append(1)) == 2.0
    assert len(calls) == read_bandwidth.ROUNDS + 1
