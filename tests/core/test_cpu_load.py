import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from ulskip_cli.core import cpu_load
from ulskip_cli.core.cpu_load import LoadMeter, is_crowded, let_threads_sleep


@pytest.fixture
def four_cpus(monkeypatch):
    monkeypatch.setattr(cpu_load, "_cpus", lambda: {0, 1, 2, 3})


def meter_of(monkeypatch, before, after, seconds, own=0.0):
    """A meter over `seconds`, in which the CPU times of all CPUs change from `before` to
    `after`.
    """
    clock = iter([0.0, seconds])
    times = iter([(0.0, 0.0, 0.0, 0.0, 0.0), (own, 0.0, 0.0, 0.0, 0.0)])
    cpus = iter([before, after])
    monkeypatch.setattr(cpu_load.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(cpu_load.os, "times", lambda: next(times))
    monkeypatch.setattr(cpu_load.psutil, "cpu_times", lambda percpu: next(cpus))
    return LoadMeter()


def cpu(user=0.0, idle=0.0, steal=0.0, guest=0.0):
    names = psutil.cpu_times()._fields
    values = dict.fromkeys(names, 0.0) | {
        "user": user,
        "idle": idle,
        "steal": steal,
        "guest": guest,
    }
    return type(psutil.cpu_times())(*[values[name] for name in names])


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have other fields of CPU times")
def test_others_are_busy_time_without_idle_guests_and_this_process(monkeypatch, four_cpus):
    none = [cpu()] * 5
    spent = [
        cpu(user=10),
        cpu(user=4, idle=6, guest=4),
        cpu(idle=8, steal=2),
        cpu(idle=10),
        cpu(user=10),
    ]
    assert (
        meter_of(monkeypatch, none, spent, 10.0, own=9.0).other_cpus() == 0.7
    )  # CPU 4 is not ours
    assert meter_of(monkeypatch, none, spent, 10.0, own=99.0).other_cpus() == 0.0
    assert meter_of(monkeypatch, none, spent, 0.05).other_cpus() is None
    assert meter_of(monkeypatch, none, spent, 10.0).other_cpus(min_seconds=11) is None


BUSY = [sys.executable, "-c", "while True: pass"]
START = (  # -3: DEVNULL
    "import subprocess, sys; print(subprocess.Popen(sys.argv[1:], stdout=-3, stderr=-3).pid)"
)


def test_a_process_that_computes_counts():
    started = subprocess.run(
        [sys.executable, "-c", START, *BUSY], capture_output=True, check=True
    )  # not our child
    try:
        meter = LoadMeter()
        time.sleep(0.5)
        assert meter.other_cpus() > 0.1
    finally:
        os.kill(int(started.stdout), signal.SIGKILL)


def test_child_processes_do_not_count_as_others():
    with subprocess.Popen(BUSY) as process:
        try:
            meter, own, end = (
                LoadMeter(),
                0.0,
                time.monotonic() + 30,
            )  # on a busy machine the child waits for its turn
            while own <= 0.1 and time.monotonic() < end:
                time.sleep(0.1)
                _, _, own = (
                    after - before
                    for after, before in zip(meter._read(), meter._before, strict=True)
                )
            assert own > 0.1
        finally:
            process.kill()


def test_a_neighbour_on_a_free_cpu_disturbs_nothing(four_cpus):
    assert not is_crowded(None, 4)
    assert not is_crowded(0.1, 4)
    assert not is_crowded(2.1, 2)
    assert is_crowded(0.5, 4)
    assert is_crowded(2.5, 2)


@pytest.mark.parametrize(
    ("others", "given", "expected"),
    [
        (2.0, {}, "PASSIVE"),
        (0.0, {}, None),
        (None, {}, None),
        (2.0, {"OMP_NUM_THREADS": "2"}, None),
        (3.0, {"OMP_NUM_THREADS": "2,1"}, "PASSIVE"),
        (4.0, {"OMP_NUM_THREADS": "1"}, None),
        (2.0, {"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE"),
        (2.0, {"GOMP_SPINCOUNT": "100"}, None),
        (2.0, {"KMP_BLOCKTIME": "0"}, None),
    ],
)
def test_threads_sleep_on_a_busy_machine_unless_the_user_decides(
    four_cpus, monkeypatch, others, given, expected
):
    for of_a_minute, lasts in ((3.0, True), (0.1, False)):
        monkeypatch.setattr(
            cpu_load.psutil, "getloadavg", lambda load=of_a_minute: (load, load, load)
        )
        environment = dict(given)
        let_threads_sleep(others, environment)
        assert environment == given | ({"OMP_WAIT_POLICY": expected} if expected and lasts else {})


def test_the_command_decides_before_torch_is_imported():
    program = (
        "import sys, os; from ulskip_cli import __main__ as m; from ulskip_cli.core import"
        " cpu_load;cpu_load.LoadMeter.other_cpus = lambda self: 99.0; cpu_load.psutil.getloadavg ="
        " lambda: (99.0,) * 3;sys.argv = ['ulskip', '--version'];exit = sys.exit; sys.exit = lambda"
        " code: None; m.main();print(os.environ.get('OMP_WAIT_POLICY'), 'torch' in sys.modules)"
    )
    clean = {
        key: value
        for key, value in os.environ.items()
        if key not in (*cpu_load.WAITING, "OMP_NUM_THREADS")
    }
    told = subprocess.run(
        [sys.executable, "-c", program], env=clean, capture_output=True, text=True, check=True
    )
    expected = "PASSIVE" if len(cpu_load._cpus()) > 1 else None
    assert told.stdout.splitlines()[-1] == f"{expected} False"
