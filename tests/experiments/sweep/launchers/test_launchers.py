"""All launchers for real on this machine: the same rows from each, and a worker's death survived."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
from ulskip_cli.experiments.sweep.launchers.slurm import Slurm

from ulskip_cli.cli.app import invoke
from ulskip_cli.core.config import compose
from ulskip_cli.core.config_schema import LauncherConfig

QUICK = ["limit=6", "decoding.max_new_tokens=4", "speed.pairs=2", "speed.warmup=0", "speed.new_tokens=3", "batch_size=2"]
GRID = ["strategy=unified,top_skip", "ratio=2,3"]
TIMES = re.compile(r"seconds|per_second|other_cpus|_speedup|^pairs$|finished_at|memory|experiment|environment")


@pytest.fixture(scope="module")
def command(model_folder, tmp_path_factory):
    """Return the arguments of a sweep, its results folder, and the rows of the same sweep in one process."""
    results = tmp_path_factory.mktemp("results")
    base = ["sweep", f"model.path={model_folder}", "model.dtype=float32", f"results_dir={results}", *QUICK, *GRID]
    assert invoke([*base, "name=inline"]) == 0
    return base, results, rows(results / "inline")


def rows(folder):
    """By id, without what a clock says; each there once."""
    found = [json.loads(line) for line in (folder / "runs.jsonl").read_text().splitlines()]
    assert len({row["id"] for row in found}) == len(found)
    told = {}
    for row in found:
        row["config"].pop("name")
        row["warnings"] = [text for text in row["warnings"] if "speedup" not in text]  # a clock decides these
        told[row["id"]] = {key: value for key, value in row.items() if not TIMES.search(key) or key == "target_speedup"}
    return told


ENGINES = {
    "local": ["launcher=local", "launcher.workers=2", "launcher.threads=1"],
    "submitit": ["launcher=submitit", "launcher.executor=local", "launcher.workers=2", "launcher.threads=1"],
    "ray": ["launcher=ray", "launcher.workers=2", "launcher.threads=1"],
}


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_a_launcher_leaves_the_same_rows_though_a_worker_dies(engine, command, tmp_path):
    if engine != "local":
        pytest.importorskip(engine, exc_type=ImportError)
    base, results, expected = command
    folder = results / engine
    arguments = [sys.executable, "-W", "ignore", "-m", "ulskip_cli", *base, f"name={engine}", *ENGINES[engine]]
    with subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        killed = None
        while process.poll() is None and killed is None:
            time.sleep(0.05)
            for mark in (folder / ".locks").glob("*.json"):
                with contextlib.suppress(OSError, ValueError, ProcessLookupError):
                    killed = json.loads(mark.read_text())["worker"]
                    os.kill(killed, signal.SIGKILL)
                    break
        told = process.stderr.read()
    assert process.returncode == 0, told
    assert killed is not None
    assert "worker 0 died" in told or "worker 1 died" in told
    assert rows(folder) == expected
    threads = {json.loads(line)["environment"]["threads"] for line in (folder / "runs.jsonl").read_text().splitlines()}
    assert threads == {1}


def test_an_engine_that_is_not_installed_is_named(command, monkeypatch, capsys):
    base, _, _ = command
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert invoke([*base, "name=none", "launcher=submitit"]) == 2
    assert "pip install 'ulskip[submitit]'" in capsys.readouterr().err


def test_a_cluster_that_is_not_there_is_told(command, capsys):
    pytest.importorskip("ray", exc_type=ImportError)
    base, _, _ = command
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert invoke([*base, "name=none", "launcher=ray", "launcher.address=127.0.0.1:1"]) == 2
    err = capsys.readouterr().err
    assert all(text in err for text in ("launcher=ray", "launcher.address", "127.0.0.1:1"))


def test_submitit_never_loads_files_that_were_in_the_results_folder(tmp_path, monkeypatch):
    class Executor:
        cluster = "local"

        def __init__(self, folder, cluster):
            folders.append(folder)

        def update_parameters(self, **options):
            pass

    monkeypatch.setitem(sys.modules, "submitit", SimpleNamespace(AutoExecutor=Executor))
    folders, jobs = [], [SimpleNamespace(config=compose([f"results_dir={tmp_path}", "name=x"]))]
    for _ in range(2):
        Slurm(LauncherConfig(name="submitit"), SimpleNamespace(jobs=jobs, with_threads=lambda threads: None))
    assert len(set(folders)) == 2
    for folder in map(Path, folders):
        assert folder.parent == tmp_path / "x" / "logs" / "submitit"
        assert folder.stat().st_mode & 0o077 == 0 and not list(folder.iterdir())
