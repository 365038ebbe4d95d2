import os
import signal
import socket
import subprocess
import sys
import time
from types import SimpleNamespace
from unittest.mock import Mock

import psutil
import pytest
from huggingface_hub import constants

from ulskip_cli.core import environment
from ulskip_cli.core.environment import LoadMeter, let_threads_sleep


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


@pytest.fixture
def four_cpus(monkeypatch):
    monkeypatch.setattr(environment, "cpus", lambda: {0, 1, 2, 3})


def cpu(**seconds):
    fields = psutil.cpu_times()._fields
    return type(psutil.cpu_times())(*(seconds.get(name, 0.0) for name in fields))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have other fields of CPU times")
@pytest.mark.parametrize(
    ("seconds", "own", "least", "expected"),
    [(10.0, 9.0, 0.1, 0.7), (10.0, 99.0, 0.1, 0.0), (0.05, 0.0, 0.1, None), (10.0, 0.0, 11, None)],
)
def test_others_are_busy_time_without_idle_guests_and_this_process(
    monkeypatch, four_cpus, seconds, own, least, expected
):
    spent = [cpu(user=10), cpu(user=4, idle=6, guest=4), cpu(idle=8, steal=2), cpu(idle=10)]
    not_ours = cpu(user=10)
    clock, times = iter([0.0, seconds]), iter([(0.0,) * 5, (own, 0.0, 0.0, 0.0, 0.0)])
    cpus = iter([[cpu()] * 5, [*spent, not_ours]])
    monkeypatch.setattr(environment.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(environment.os, "times", lambda: next(times))
    monkeypatch.setattr(environment.psutil, "cpu_times", lambda percpu: next(cpus))
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
        assert meter.other_cpus() > 0.1
    finally:
        os.kill(int(foreign.stdout), signal.SIGKILL)


@pytest.mark.parametrize(
    ("others", "given", "expected"),
    [
        (2.0, {}, "PASSIVE"),
        (0.0, {}, None),
        (None, {}, None),
        (2.0, {"OMP_NUM_THREADS": "2"}, None),
        (3.0, {"OMP_NUM_THREADS": "2,1"}, "PASSIVE"),
        (2.0, {"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE"),
        (2.0, {"KMP_BLOCKTIME": "0"}, None),
    ],
)
def test_threads_sleep_on_a_busy_machine_unless_the_user_decides(
    four_cpus, monkeypatch, others, given, expected
):
    for minute, lasts in ((3.0, True), (0.1, False)):
        monkeypatch.setattr(environment.psutil, "getloadavg", lambda load=minute: (load,) * 3)
        variables = dict(given)
        meter = SimpleNamespace(other_cpus=lambda: others)
        let_threads_sleep(meter, variables)
        assert variables == given | ({"OMP_WAIT_POLICY": expected} if expected and lasts else {})


@pytest.mark.parametrize("minute", [3.0, 0.1])
def test_a_start_is_long_enough_to_measure_a_busy_machine(four_cpus, monkeypatch, minute):
    monkeypatch.setattr(environment.psutil, "getloadavg", lambda: (minute,) * 3)
    reads = iter([(0.0, 0.0, 0.0), (0.01, 0.04, 0.01), (0.2, 0.8, 0.2)])
    monkeypatch.setattr(LoadMeter, "_read", staticmethod(lambda: next(reads)))
    slept = []
    monkeypatch.setattr(environment.time, "sleep", slept.append)
    variables = {}
    let_threads_sleep(LoadMeter(), variables)
    is_busy = minute > 1
    assert variables == ({"OMP_WAIT_POLICY": "PASSIVE"} if is_busy else {})
    assert len(slept) == is_busy


def test_the_command_decides_before_torch_is_imported():
    program = (
        "import sys, os; from ulskip_cli import __main__ as m;"
        " from ulskip_cli.core import environment;"
        " environment.LoadMeter.other_cpus = lambda self: 99.0;"
        " environment.cpus = lambda: {0, 1}; environment.psutil.getloadavg = lambda: (99.0,) * 3;"
        " sys.argv = ['ulskip', '--version']; sys.exit = lambda code: None; m.main();"
        " print(os.environ.get('OMP_WAIT_POLICY'), 'torch' in sys.modules)"
    )
    unset = {*environment.WAITING, "OMP_NUM_THREADS"}
    clean = {key: value for key, value in os.environ.items() if key not in unset}
    done = subprocess.run(
        [sys.executable, "-c", program], env=clean, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "PASSIVE False"
