"""All launchers for real on this machine: the same rows from each, although a worker dies."""

import contextlib
import subprocess
import sys
import time
import warnings

import psutil
import pytest
from report_rows import stored_rows, timeless_rows

from ulskip_cli.cli.app import invoke

QUICK = ["limit=4", "max_new_tokens=4", "batch_size=2"]
QUICK += ["speed.seconds=0", "speed.new_tokens=3"]
GRID = ["strategy=unified", "ratio=1.5,2,3"]


@pytest.fixture(scope="module")
def command(model_folder, tmp_path_factory):
    """Return the arguments of a sweep, its results folder, and the rows of one process."""
    results = tmp_path_factory.mktemp("results")
    base = ["sweep", f"model.path={model_folder}", "model.dtype=float32", f"results_dir={results}"]
    base += [*QUICK, *GRID]
    assert invoke([*base, "name=inline"]) == 0
    return base, results, timeless_rows(results / "inline")


def kill_a_worker(words):
    """Kill one process whose command contains all words; return False if there is none."""
    for process in psutil.process_iter(["cmdline"]):
        if {"--since", *words} <= set(process.info["cmdline"] or ()):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
                return True
    return False


LAUNCHERS = {"local": [], "submitit": ["launcher.executor=local"], "ray": []}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["local", *(pytest.param(name, marks=pytest.mark.long) for name in ("submitit", "ray"))]
)
def test_a_launcher_leaves_the_same_rows_although_a_worker_dies(name, command, tmp_path):
    if name != "local":
        pytest.importorskip(name, exc_type=ImportError)
    base, results, expected = command
    folder = results / name
    arguments = [*base, f"name={name}", f"launcher={name}", *LAUNCHERS[name]]
    arguments += ["launcher.workers=2", "launcher.threads=1"]
    words = [sys.executable, "-W", "ignore", "-m", "ulskip_cli", *arguments]
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with subprocess.Popen(words, **streams, text=True) as process:
        killed = False
        while process.poll() is None and not killed:
            time.sleep(0.05)
            killed = (folder / "runs.jsonl").exists() and kill_a_worker(arguments)
        errors = process.stderr.read()
    assert process.returncode == 0, errors
    assert killed
    assert timeless_rows(folder) == expected
    assert {row["environment"]["threads"] for row in stored_rows(folder)} == {1}


def test_a_package_that_is_not_installed_is_named(command, monkeypatch, capsys):
    base, _, _ = command
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert invoke([*base, "name=none", "launcher=submitit"]) == 2
    assert "pip install 'ulskip[submitit]'" in capsys.readouterr().err


def test_a_cluster_that_cannot_be_reached_is_named(command, capsys):
    pytest.importorskip("ray", exc_type=ImportError)
    base, _, _ = command
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert invoke([*base, "name=none", "launcher=ray", "launcher.address=127.0.0.1:1"]) == 2
    err = capsys.readouterr().err
    assert all(text in err for text in ("launcher=ray", "launcher.address", "127.0.0.1:1"))
