import threading

import pytest

from ulskip_cli.core.errors import NotApplicable, RunError, StorageError
from ulskip_cli.experiments.record import Record
from ulskip_cli.experiments.results import ResultsFolder
from ulskip_cli.experiments.sweep.grid import points
from ulskip_cli.experiments.sweep.jobs import make_jobs
from ulskip_cli.experiments.sweep.status import SweepStatus
from ulskip_cli.experiments.sweep.worker import Worker


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

    def go(act=lambda job: None, force=False, fail_fast=False):
        def run(job, baseline):
            act(job)
            assert bool(job.baseline) == bool(baseline)
            record = Record.joined(job.identity)
            folder.save(job.config, record, [])
            return record

        watcher = Watcher()
        Worker(jobs, SweepStatus(folder, "ray", force), run, watcher, fail_fast).run()
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
    record = next(record for record in folder.records() if record.status == "failed")
    assert (record.id, record.reason) == (jobs[1].id, "ZeroDivisionError: oops")
    assert "in act" in (folder.path / record.log).read_text()
    assert go().ran == [("unified ratio 2", "done")]
    assert [record.status for record in folder.records()] == ["done"] * 3


def test_fail_fast_stops(sweep):
    go, _, _ = sweep
    assert go(fail_at(2, RunError("x")), fail_fast=True).ran == [
        ("full", "done"),
        ("unified ratio 2", "failed"),
    ]


def test_what_does_not_apply_is_no_failure(sweep):
    go, _, folder = sweep
    assert go(fail_at(3, NotApplicable("no batches"))).ran[-1] == ("unified ratio 3", "n/a")
    record = folder.records()[-1]
    assert (record.reason, record.log) == ("no batches", None)


def test_points_of_a_baseline_that_failed_fail_too(sweep):
    go, _, folder = sweep

    def act(job):
        if job.config.strategy.name == "full":
            raise RunError("out of memory")

    assert [status for _, status in go(act).ran] == ["failed"] * 3
    assert folder.records()[0].id in folder.records()[-1].reason


def test_a_folder_that_takes_no_more_ends_the_sweep(sweep):
    go, _, _ = sweep
    with pytest.raises(StorageError, match="full"):
        go(fail_at(2, StorageError("full")))


def test_a_point_that_was_claimed_and_not_finished_comes_last(sweep):
    go, jobs, folder = sweep
    folder.check_writable()
    with folder.claim(jobs[1].id) as claimed:
        assert claimed
    assert [label for label, _ in go().ran] == ["full", "unified ratio 3", "unified ratio 2"]


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
