import os
import signal
import socket
import subprocess
import sys
import time
from unittest.mock import Mock

import psutil
import pytest
from huggingface_hub import constants

from ulskip_cli.core import environment
from ulskip_cli.core.environment import LoadMeter


def test_an_unreachable_hub_is_offline_for_one_block(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("urllib.request.getproxies", dict)
    fails = Mock(side_effect=socket.gaierror(-3, "temporary failure"))
    monkeypatch.setattr(socket, "getaddrinfo", fails)
    with pytest.raises(OSError, match="temporary"):
        environment.check_hub_reachable()
    with environment.offline_if_hub_unreachable():
        assert constants.is_offline_mode()
    monkeypatch.setattr("urllib.request.getproxies", lambda: {"https": "http://proxy"})
    with environment.offline_if_hub_unreachable():
        assert not constants.is_offline_mode()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with environment.offline_if_hub_unreachable():
        assert constants.is_offline_mode()
    assert constants.is_offline_mode()


def cpu(**seconds):
    fields = psutil.cpu_times()._fields
    return type(psutil.cpu_times())(*(seconds.get(name, 0.0) for name in fields))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have other fields of CPU times")
@pytest.mark.parametrize(
    ("seconds", "own", "least", "expected"),
    [(10.0, 9.0, 0.1, 0.7), (10.0, 99.0, 0.1, 0.0), (0.05, 0.0, 0.1, None), (10.0, 0.0, 11, None)],
)
def test_others_are_busy_time_without_idle_guests_and_this_process(
    monkeypatch, seconds, own, least, expected
):
    spent = [cpu(user=10), cpu(user=4, idle=6, guest=4), cpu(idle=8, steal=2), cpu(idle=10)]
    not_ours = cpu(user=10)
    clock, times = iter([0.0, seconds]), iter([(0.0,) * 5, (own, 0.0, 0.0, 0.0, 0.0)])
    cpus = iter([[cpu()] * 5, [*spent, not_ours]])
    monkeypatch.setattr(environment, "cpus", lambda: {0, 1, 2, 3})
    monkeypatch.setattr(environment.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(environment.os, "times", lambda: next(times))
    monkeypatch.setattr(psutil, "cpu_times", lambda percpu: next(cpus))
    assert LoadMeter().other_cpus(least) == expected


BUSY = [sys.executable, "-c", "while True: pass"]
START = (  # -3: DEVNULL
    "import subprocess, sys; print(subprocess.Popen(sys.argv[1:], stdout=-3, stderr=-3).pid)"
)


def test_a_process_that_computes_counts_unless_it_is_a_child():
    foreign = subprocess.run([sys.executable, "-c", START, *BUSY], capture_output=True, check=True)
    try:
        meter = LoadMeter()
        time.sleep(0.5)
        assert meter.other_cpus(0.1) > 0.1
    finally:
        os.kill(int(foreign.stdout), signal.SIGKILL)


@pytest.mark.parametrize("device", ["cpu", "cuda:99", "hpu:0", "other:0"])
def test_a_device_of_another_machine_has_no_name_here(device):
    assert environment.machine(device)["accelerator"] is None
