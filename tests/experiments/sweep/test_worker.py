import json
import threading

import pytest
from ulskip_cli.experiments.sweep.running_marker import RunningMarker, marker_path, read_marker

from ulskip_cli.core.errors import NotApplicable, RunError, StorageError
from ulskip_cli.experiments.record import Record
from ulskip_cli.experiments.results import ResultsFolder
from ulskip_cli.experiments.sweep.grid import points
from ulskip_cli.experiments.sweep.jobs import make_jobs
from ulskip_cli.experiments.sweep.status import SweepStatus
from ulskip_cli.experiments.sweep.worker import FailurePolicy, Worker


class Watcher:
    def __init__(self):
        self.ran, self.found = [], []

    def job_started(self, job):
        pass

    def job_settled(self, job, record, ran):
        (self.ran if ran else self.found).append((job.label, record.status))


@pytest.fixture
def sweep(tmp_path):
    """Jobs, and what runs them with a function in place of a model."""
    jobs = make_jobs(points(["ratio=2,3", f"results_dir={tmp_path}"]))
    folder = ResultsFolder.of(jobs[0].config)

    def go(act=lambda job: None, policy=None, force=False):
        def run(job, baseline):
            act(job)
            assert bool(job.baseline) == bool(baseline)
            record = Record.joined(job.identity)
            folder.save(job.config, record, [])
            return record

        watcher = Watcher()
        status = SweepStatus(folder, lambda record: True, force)
        Worker(jobs, status, run, policy or FailurePolicy("t"), watcher).run()
        return watcher

    return go, jobs, folder


ALL = ["full", "unified ratio 2", "unified ratio 3"]


def fail_at(ratio, error):
    def act(job):
        if job.config.strategy.name == "unified" and job.config.ratio == ratio:
            raise error

    return act


def test_each_job_is_run_once(sweep):
    go, _, _ = sweep
    assert go().ran == [(label, "done") for label in ALL]
    again = go()
    assert (again.ran, [label for label, _ in again.found]) == ([], ALL)
    assert len(go(force=True).ran) == 3


def test_a_failure_is_a_row_with_a_log_and_is_tried_again(sweep):
    go, jobs, folder = sweep
    assert go(fail_at(2, ZeroDivisionError("oops"))).ran == [
        ("full", "done"),
        ("unified ratio 2", "failed"),
        ("unified ratio 3", "done"),
    ]
    row = next(row for row in folder.rows() if row["status"] == "failed")
    assert (row["id"], row["reason"]) == (jobs[1].id, "ZeroDivisionError: oops")
    assert "in act" in (folder.path / row["log"]).read_text()
    assert go().ran == [("unified ratio 2", "done")]
    assert [row["status"] for row in folder.rows()] == ["done"] * 3


def test_fail_fast_stops(sweep):
    go, _, _ = sweep
    assert go(fail_at(2, RunError("x")), FailurePolicy("t", fail_fast=True)).ran == [
        ("full", "done"),
        ("unified ratio 2", "failed"),
    ]


def test_what_does_not_apply_is_no_failure(sweep):
    go, _, folder = sweep
    assert go(fail_at(3, NotApplicable("no batches"))).ran[-1] == ("unified ratio 3", "n/a")
    row = folder.rows()[-1]
    assert (row["reason"], "log" in row) == ("no batches", False)


def test_points_of_a_baseline_that_failed_fail_too(sweep):
    go, _, folder = sweep

    def act(job):
        if job.config.strategy.name == "full":
            raise RunError("out of memory")

    assert [status for _, status in go(act).ran] == ["failed"] * 3
    assert folder.rows()[0]["id"] in folder.rows()[-1]["reason"]


def test_a_folder_that_takes_no_more_ends_the_sweep(sweep):
    go, _, _ = sweep
    with pytest.raises(StorageError, match="full"):
        go(fail_at(2, StorageError("full")))


def test_a_point_whose_workers_die_counts_as_failed(sweep):
    go, jobs, folder = sweep
    folder.check_writable()
    (folder.path / ".locks").mkdir()
    for token, status in (("another sweep's", "done"), ("t", "failed")):
        marker_path(folder, jobs[1]).write_text(json.dumps({"token": token, "attempt": 3}))
        assert go(force=True).ran[1] == ("unified ratio 2", status)
    rows = [json.loads(line) for line in folder.runs_path.read_text().splitlines()]
    assert ["3 workers died" in row["reason"] for row in rows if row["status"] == "failed"] == [True]
    assert not marker_path(folder, jobs[1]).exists()


def test_two_sweeps_share_the_work(sweep):
    go, _, folder = sweep
    both = threading.Barrier(2)
    watchers = []

    def one():
        both.wait()
        watchers.append(go())

    threads = [threading.Thread(target=one) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(watchers[0].ran + watchers[1].ran) == [(label, "done") for label in ALL]
    assert len(folder.runs_path.read_text().splitlines()) == 3


def test_a_mark_tells_what_runs(sweep):
    _, jobs, folder = sweep
    mark = RunningMarker(folder)
    folder.check_writable()
    marker_path(folder, jobs[0]).parent.mkdir()
    mark.job_started(jobs[0])
    mark.phase("generate", 9)
    assert read_marker(marker_path(folder, jobs[0])) == {"phase": "generate", "done": 0, "total": 9}
    mark.job_settled(jobs[0], None, True)
    mark.phase("more", 9)(3)
