import json

import pytest

from ulskip_cli.experiments.results import ResultsFolder
from ulskip_cli.experiments.sweep.grid import points
from ulskip_cli.experiments.sweep.jobs import make_jobs
from ulskip_cli.experiments.sweep.status import SweepStatus


@pytest.fixture
def jobs(tmp_path):
    return make_jobs(points(["ratio=2,3", "baseline=false", f"results_dir={tmp_path}"]))


@pytest.fixture
def folder(jobs):
    return ResultsFolder.of(jobs[0].config)


def ledger_of(folder, **options):
    return SweepStatus(folder, lambda row: row.get("here", True), **options)


def done(job, **keys):
    return {**job.failure_row(Exception(), ""), "status": "done", **keys}


def test_a_finished_point_is_done_for_good(jobs, folder):
    folder.save(jobs[0].config, done(jobs[0]), [])
    ledger = ledger_of(folder)
    assert [ledger.state(job) for job in jobs] == ["done", "to do"]
    folder.append(jobs[0].failure_row(ValueError(), "x"))
    ledger.refresh()
    assert ledger.state(jobs[0]) == "done"
    assert ledger.row(jobs[0])["status"] == "done"


def test_force_asks_for_new_rows(jobs, folder):
    folder.save(jobs[0].config, done(jobs[0]), [])
    ledger = ledger_of(folder, force=True)
    assert ledger.state(jobs[0]) == "to do"
    joined = ledger_of(folder, force=True, since=ledger.since)
    folder.save(jobs[0].config, done(jobs[0]), [])
    for one in (ledger, joined):
        one.refresh()
        assert one.state(jobs[0]) == "done"


def test_failures_of_an_earlier_sweep_are_to_do(jobs, folder):
    folder.append(jobs[0].failure_row(ValueError(), "x"))
    ledger = ledger_of(folder)
    assert (ledger.state(jobs[0]), ledger.any_failed(jobs)) == ("to do", False)
    assert ledger.told(jobs[0]) == ("to do", None, "failed before: x")
    folder.append(jobs[1].failure_row(ValueError(), "y"))
    ledger.refresh()
    assert (ledger.state(jobs[1]), ledger.any_failed(jobs), ledger.has_none(jobs[1].id)) == ("failed", True, True)


def test_rows_of_other_machines_are_to_do_until_this_one_has_run_them(jobs, folder):
    folder.save(jobs[0].config, done(jobs[0], here=False), [])
    ledger = ledger_of(folder)
    assert ledger.state(jobs[0]) == "to do"
    folder.save(jobs[0].config, done(jobs[0], here=False), [])  # by a worker elsewhere
    ledger.refresh()
    assert ledger.state(jobs[0]) == "done"


def test_a_line_that_is_not_whole_yet_is_read_later(jobs, folder):
    folder.save(jobs[0].config, done(jobs[0]), [])
    ledger = ledger_of(folder)
    line = json.dumps(done(jobs[1])) + "\n"
    folder.keep_generations(jobs[1].id, [])
    for part in (line[:10], line[10:]):
        assert ledger.state(jobs[1]) == "to do"
        with folder.runs_path.open("a") as stream:
            stream.write(part)
        ledger.refresh()
    assert ledger.state(jobs[1]) == "done"


def test_the_time_left_is_guessed_from_runs_alike(jobs, folder):
    ledger = ledger_of(folder)
    assert ledger.seconds_left(jobs) == (0, 2)
    folder.save(jobs[0].config, done(jobs[0], point_seconds=4.0), [])
    folder.save(jobs[0].config, done(jobs[0], id="other", batch_size=1, point_seconds=40.0), [])
    ledger.refresh()
    assert ledger.seconds_left([jobs[1]]) == (4.0, 0)
    short = done(jobs[0], id="short", strategy="top_skip", point_seconds=1.0)
    folder.save(jobs[0].config, {**short, "config": {"limit": 9}}, [])
    few = make_jobs(points(["ratio=2,3", "limit=9", "baseline=false", f"results_dir={folder.path.parent}"]))
    ledger.refresh()
    assert ledger.seconds_left(few) == (2.0, 0)  # as many examples rather than the same strategy
    assert ledger.told(jobs[1]) == ("to do", 4.0, "")
    assert ledger.told(jobs[0]) == ("done", 4.0, "")


def test_a_file_that_is_replaced_is_read_again(jobs, folder):
    folder.append(jobs[0].failure_row(ValueError(), "x"))
    with folder.runs_path.open("a") as stream:
        stream.write("rubbish that is longer than nothing\n")
    ledger = ledger_of(folder)
    assert folder.quarantine_corrupt_lines()
    folder.append(jobs[1].failure_row(ValueError(), "y"))
    ledger.refresh()
    assert [ledger.state(job) for job in jobs] == ["to do", "failed"]


def test_failures_of_others_points_are_none_of_this_sweeps(jobs, folder):
    ledger = ledger_of(folder)
    folder.append({**jobs[0].failure_row(ValueError(), "x"), "id": "another"})
    ledger.refresh()
    assert not ledger.any_failed(jobs)
