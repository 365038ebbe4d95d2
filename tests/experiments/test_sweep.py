import errno
import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import Mock

import pytest
from report_rows import stored_rows, timeless_rows

from ulskip_cli.core.errors import RunError
from ulskip_cli.engines.decoder import Decoder
from ulskip_cli.experiments import runner
from ulskip_cli.experiments.grid import grid_configs
from ulskip_cli.experiments.ledger import Ledger, make_jobs
from ulskip_cli.experiments.record import Record
from ulskip_cli.experiments.results import ResultsFolder
from ulskip_cli.experiments.sweep import run_jobs


@pytest.fixture
def quick_sweep(tmp_path, monkeypatch):
    """Return a function that runs jobs without a model, the jobs, and their folder."""
    jobs = make_jobs(grid_configs(["ratio=2,3", f"results_dir={tmp_path}", "launcher=ray"]))
    folder, acts = ResultsFolder.of(jobs[0].config), [lambda config: None]

    def run_point(point, session, baseline):
        acts[0](point.config)
        assert bool(point.baseline) == bool(baseline)
        record = Record.joined(point.settings)
        folder.save_generations(record.id, [])
        folder.save(record)

    monkeypatch.setattr(runner, "run_point", run_point)

    def run(act=acts[0]):
        acts[0], observer = act, Mock()
        run_jobs(Ledger(jobs), observer)
        settled = [call.args for call in observer.job_settled.call_args_list]
        return [(job.label, record.status) for job, record, is_new in settled if is_new]

    return run, jobs, folder


ALL = [("full", "done"), ("unified ratio 2", "done"), ("unified ratio 3", "done")]


def fail_at(ratio, error, strategy="unified"):
    def act(config):
        if (config.strategy.name, config.ratio) == (strategy, ratio):
            raise error

    return act


def test_a_failure_is_a_row_with_a_log_and_runs_again(quick_sweep):
    run, _, folder = quick_sweep
    failing = fail_at(2, ZeroDivisionError("oops"))
    failed = ("unified ratio 2", "failed")
    assert sorted(run(failing)) == sorted([ALL[0], failed, ALL[2]])
    assert run(failing) == [failed]  # a point that was claimed before comes last
    record = next(record for record in folder.records() if record.status == "failed")
    assert record.reason == "ZeroDivisionError: oops"
    assert "in act" in (folder.path / record.log).read_text()
    assert run() == ALL[1:2]


def test_points_of_a_baseline_that_failed_fail_too(quick_sweep):
    run, jobs, folder = quick_sweep
    settled = run(fail_at(1, RunError("out of memory"), "full"))
    assert [status for _, status in settled] == ["failed"] * 3
    ledger = Ledger(jobs)
    run_jobs(ledger)
    with pytest.raises(RunError, match="3 of 3 points failed"):
        ledger.outcome().check()
    assert folder.records()[0].id in folder.records()[-1].reason


def test_two_sweeps_share_the_work(quick_sweep):
    _, jobs, folder = quick_sweep
    both = threading.Barrier(2)

    def act(_):
        both.wait()
        ledger = Ledger(jobs)
        run_jobs(ledger)
        return ledger

    with ThreadPoolExecutor(2) as pool:
        for ledger in pool.map(act, range(2)):
            assert [ledger.settled[job.id].status for job in jobs] == ["done"] * 3
    assert len(folder.runs_path.read_text().splitlines()) == 3


@pytest.fixture
def sweep(ulskip, overrides):
    few = [*overrides, "limit=5", "batch_size=2"]
    return lambda *words, name="x": ulskip("sweep", *few, f"name={name}", *words)


def interrupt_after(monkeypatch, batches):
    """Interrupt a run after some batches of answers."""
    generate, left = Decoder.generate, [batches]

    def some(self, *args, **options):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return generate(self, *args, **options)

    monkeypatch.setattr(Decoder, "generate", some)


def test_a_point_goes_on_after_its_last_finished_batch(sweep, tmp_path, monkeypatch, spy):
    grid = ["ratio=2,3", "decoding=sample"]
    assert sweep(*grid, name="whole")[0] == 0
    generate = spy(Decoder, "generate")
    for batches in (2, 2):
        with monkeypatch.context() as patch:
            interrupt_after(patch, batches)
            assert sweep(*grid)[0] == 130
    listed = json.loads(sweep(*grid, "--dry-run", "--json")[1])
    assert listed["counts"] == {"done": 1, "to do": 2}
    assert listed["points"][1]["note"] == "finished batches: 1"
    assert sweep(*grid)[0] == 0
    assert timeless_rows(tmp_path / "x") == timeless_rows(tmp_path / "whole")
    answered = sum(len(call.args[1].input_ids) for call in generate.call_args_list)
    assert answered == 3 * 5  # no prompt was answered twice
    assert not list((tmp_path / "x" / "generations").glob("*.partial.jsonl"))


def test_a_point_that_does_not_apply_is_in_rows_and_tables(sweep, tmp_path):
    code, out, _ = sweep("strategy=full,skip_decode", "decoding=self_speculative", "batch_size=1")
    assert code == 0 and "N/A" in out
    rows = {row["status"]: row for row in stored_rows(tmp_path / "x")}
    assert "drafts" in rows["n/a"]["reason"]
    assert "N/A" in (tmp_path / "x" / "table.md").read_text()


def test_a_full_disk_ends_the_sweep_in_one_line_and_nothing_is_lost(sweep, tmp_path, monkeypatch):
    write, room = os.write, [6]

    def little_room(descriptor, data):
        room[0] -= 1
        if room[0] < 0:
            write(descriptor, data[:7])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data)

    with monkeypatch.context() as patch:
        patch.setattr("ulskip_cli.core.files.os.write", little_room)
        code, out, err = sweep("ratio=2,3")
    last = err.splitlines()[-1]
    assert (code, out) == (1, "")
    assert str(tmp_path / "x") in last and "No space left on device" in last
    assert sweep("ratio=2,3")[0] == 0
    assert len(ResultsFolder(tmp_path / "x").records()) == 3


def test_a_dry_run_lists_states_and_reasons(sweep):
    assert sweep("ratio=2,2.5")[0] == 0
    code, out, _ = sweep("ratio=2,3,99", "--dry-run")
    assert code == 0 and "4 points: 2 done, 1 to do, 1 n/a" in out and "out of reach" in out
