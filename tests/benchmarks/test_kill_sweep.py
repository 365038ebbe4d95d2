"""A small run of benchmarks/kill_sweep.py, and its comparison of rows."""

import importlib.util
from pathlib import Path

import pytest

from ulskip_cli.cli.app import invoke

FILE = Path(__file__).parents[2] / "benchmarks" / "kill_sweep.py"
QUICK = ["limit=6", "decoding.max_new_tokens=4", "speed.pairs=2", "speed.warmup=0", "speed.new_tokens=3"]
GRID = ["strategy=full,unified,top_skip", "ratio=2,3", "batch_size=1,2"]


@pytest.fixture(scope="module")
def kill_sweep():
    spec = importlib.util.spec_from_file_location("kill_sweep", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_a_sweep_that_is_killed_again_and_again_ends_with_the_same_rows(kill_sweep, model_folder, tmp_path):
    overrides = [f"model.path={model_folder}", "model.dtype=float32", *QUICK, *GRID]
    assert invoke(["sweep", f"results_dir={tmp_path}", "name=whole", *overrides]) == 0
    whole = kill_sweep.rows_of(tmp_path / "whole")
    there = kill_sweep.killed_sweep(tmp_path, overrides, 4, 1.0, seed=1)
    assert len(there) == 4
    assert kill_sweep.differences(whole, kill_sweep.rows_of(tmp_path / "killed")) == []


def test_what_was_lost_or_differs_is_said(kill_sweep):
    row = {"id": "a", "bleu": 1.0, "decode_seconds": 1.0, "config": {"name": "x"}}
    assert kill_sweep.differences([row], [{**row, "decode_seconds": 2.0, "config": {"name": "y"}}]) == []
    assert kill_sweep.differences([row], []) == ["a is lost"]
    assert kill_sweep.differences([], [row]) == ["a is only in the killed sweep"]
    assert kill_sweep.differences([row], [row, {**row, "bleu": 2.0}]) == ["a has 2 rows", "a differs in bleu"]
