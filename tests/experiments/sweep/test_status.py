import json
from dataclasses import replace

import pytest

from ulskip_cli.core import environment
from ulskip_cli.core.errors import RunError
from ulskip_cli.experiments.record import Record, read
from ulskip_cli.experiments.results import ResultsFolder
from ulskip_cli.experiments.sweep.grid import points
from ulskip_cli.experiments.sweep.jobs import make_jobs
from ulskip_cli.experiments.sweep.status import JobState, SweepStatus


@pytest.fixture
def jobs(tmp_path):
    return make_jobs(points(["ratio=2,3", "baseline=false", f"results_dir={tmp_path}"]))


@pytest.fixture
def folder(jobs):
    return ResultsFolder.of(jobs[0].config)


def status_of(folder, **options):
    return SweepStatus(folder, "inline", **options)


def done(job, **machine):
    """A finished record of this machine, or of one that differs."""
    where = {**environment.code(), **environment.machine("cpu"), **machine}
    row = Record.joined(job.identity, device="cpu").to_row()
    return read(json.dumps({**row, "environment": where}))


def test_a_finished_point_is_done_for_good(jobs, folder):
    folder.save(jobs[0].config, done(jobs[0]), [])
    status = status_of(folder)
    assert [status.state(job) for job in jobs] == ["done", "to do"]
    folder.append(jobs[0].failure_record(RunError("x")))
    status.refresh()
    assert status.state(jobs[0]) == "done"
    assert status.record(jobs[0]).status == "done"


def test_force_asks_for_new_rows(jobs, folder):
    folder.save(jobs[0].config, done(jobs[0]), [])
    status = status_of(folder, force=True)
    assert status.state(jobs[0]) == "to do"
    joined = status_of(folder, force=True, since=status.since)
    folder.save(jobs[0].config, done(jobs[0]), [])
    for one in (status, joined):
        one.refresh()
        assert one.state(jobs[0]) == "done"


def test_failures_of_an_earlier_sweep_are_to_do(jobs, folder):
    folder.append(jobs[0].failure_record(RunError("x")))
    status = status_of(folder)
    assert (status.state(jobs[0]), status.any_failed(jobs)) == ("to do", False)
    assert status.describe(jobs[0]) == JobState("to do", "failed before: x")
    folder.append(jobs[1].failure_record(RunError("y")))
    status.refresh()
    assert (status.state(jobs[1]), status.any_failed(jobs), status.has_no_result(jobs[1].id)) == (
        "failed",
        True,
        True,
    )


def test_rows_of_other_machines_are_to_do_until_this_one_has_run_them(jobs, folder):
    folder.save(jobs[0].config, done(jobs[0], processor="another"), [])
    status = status_of(folder)
    assert status.state(jobs[0]) == "to do"
    folder.save(jobs[0].config, done(jobs[0], processor="another"), [])  # by a worker elsewhere
    status.refresh()
    assert status.state(jobs[0]) == "done"


def test_a_line_that_is_not_whole_yet_is_read_later(jobs, folder):
    folder.save(jobs[0].config, done(jobs[0]), [])
    status = status_of(folder)
    line = json.dumps(done(jobs[1]).to_row()) + "\n"
    folder.save_generations(jobs[1].id, [])
    for part in (line[:10], line[10:]):
        assert status.state(jobs[1]) == "to do"
        with folder.runs_path.open("a") as stream:
            stream.write(part)
        status.refresh()
    assert status.state(jobs[1]) == "done"


def test_a_file_that_is_replaced_is_read_again(jobs, folder):
    folder.append(jobs[0].failure_record(RunError("x")))
    with folder.runs_path.open("a") as stream:
        stream.write("rubbish that is longer than nothing\n")
    status = status_of(folder)
    assert folder.quarantine_corrupt_lines()
    folder.append(jobs[1].failure_record(RunError("y")))
    status.refresh()
    assert [status.state(job) for job in jobs] == ["to do", "failed"]


def test_failures_of_others_points_are_none_of_this_sweeps(jobs, folder):
    status = status_of(folder)
    folder.append(replace(jobs[0], id="another", point=None).failure_record(RunError("x")))
    status.refresh()
    assert not status.any_failed(jobs)
