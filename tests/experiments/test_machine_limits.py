import torch

from ulskip_cli.experiments import machine_limits


def test_both_are_measured(monkeypatch):
    monkeypatch.setattr(machine_limits, "READ_BYTES", 2**16)
    monkeypatch.setattr(machine_limits, "LARGEST_SIDE", 256)
    measured = machine_limits.measure(torch.device("cpu"), torch.bfloat16)
    assert measured.bytes_per_second > 0
    assert measured.flops_per_second > 0


def test_the_best_of_several_rounds_counts(monkeypatch):
    clock = iter([0.0, 3.0, 10.0, 12.0, 20.0, 25.0, 30.0, 34.0, 40.0, 46.0])
    monkeypatch.setattr(machine_limits, "now", lambda device: next(clock))
    calls = []
    assert machine_limits._best_seconds(torch.device("cpu"), lambda: calls.append(1)) == 2.0
    assert len(calls) == machine_limits.ROUNDS + 1


def test_products_grow_until_they_take_long_enough(monkeypatch):
    seconds, sides = iter([0.001, 0.01, 0.1]), []
    monkeypatch.setattr(machine_limits, "_best_seconds", lambda device, work: sides.append(work().shape[0]) or next(seconds))
    rate = machine_limits.matmul_flops_per_second(torch.device("cpu"), torch.float32)
    assert sides == [256, 512, 1024]
    assert rate == 2 * 256**3 / 0.001  # the best of them
