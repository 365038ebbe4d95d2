import json

import pytest

from ulskip_cli.core import environment
from ulskip_cli.core.errors import RunError
from ulskip_cli.experiments.grid import grid_configs
from ulskip_cli.experiments.ledger import Ledger, make_jobs
from ulskip_cli.experiments.record import Provenance, Record, read
from ulskip_cli.experiments.results import ResultsFolder


def jobs_of(*overrides):
    return make_jobs(grid_configs(list(overrides)))


@pytest.fixture
def jobs(tmp_path):
    return jobs_of("ratio=2,3", "baseline=false", f"results_dir={tmp_path}")


@pytest.fixture
def folder(jobs):
    return ResultsFolder.of(jobs[0].config)


def done(job, **machine):
    """A finished record of this machine, or of one that differs."""
    where = {**environment.versions(), **environment.machine("cpu"), **machine}
    row = Record.joined(job.settings, Provenance(device="cpu")).to_row()
    return read(json.dumps({**row, "environment": where}))


def save(folder, job, **machine):
    """Store a finished record and its answers."""
    folder.save_generations(job.id, [])
    folder.save(done(job, **machine))


def states(ledger, jobs):
    ledger.read_rows()
    return [record.status if (record := ledger.record(job)) else "to do" for job in jobs]


def test_a_finished_point_is_done_for_good_unless_a_sweep_is_forced(jobs, folder):
    save(folder, jobs[0])
    ledger = Ledger(jobs)
    folder.append(jobs[0].failure_record(RunError("x")))
    assert states(ledger, jobs) == ["done", "to do"]
    forced = Ledger(jobs, force=True)
    assert states(forced, jobs) == ["to do", "to do"]
    joined = Ledger(jobs, force=True, since=2)
    save(folder, jobs[0])
    assert states(forced, jobs) == states(joined, jobs) == ["done", "to do"]


def test_answers_are_part_of_a_finished_point_except_with_random_weights(jobs, folder):
    for num_examples, state in ((5, "to do"), (0, "done")):
        folder.append(done(jobs[0]).replace(num_examples=num_examples))
        assert states(Ledger(jobs), jobs[:1]) == [state]


def test_failures_of_an_earlier_sweep_are_to_do(jobs, folder):
    folder.append(jobs[0].failure_record(RunError("x")))
    ledger = Ledger(jobs)
    assert ledger.state(jobs[0]) == ("to do", "failed before: x")
    folder.append(jobs[1].failure_record(RunError("y")))
    assert states(ledger, jobs) == ["to do", "failed"]


@pytest.mark.parametrize(("launcher", "state"), [("inline", "to do"), ("ray", "done")])
def test_rows_of_other_machines_are_to_do_until_this_sweep_has_run_them(tmp_path, launcher, state):
    jobs = jobs_of("ratio=2,3", f"results_dir={tmp_path}", f"launcher={launcher}")[1:]
    folder = ResultsFolder.of(jobs[0].config)
    save(folder, jobs[0], processor="another")
    ledger = Ledger(jobs)
    assert states(ledger, jobs[:1]) == [state]
    save(folder, jobs[0], processor="another")  # by a worker elsewhere
    assert states(ledger, jobs[:1]) == ["done"]


def test_the_reason_is_told_why_a_point_with_a_row_is_to_do(jobs, folder):
    first, second = jobs

    def note(job, **options):
        return Ledger(jobs, **options).state(job).note

    assert note(first) == note(second) == ""
    save(folder, first, processor="another")
    assert note(first).startswith("again, because the stored row is of another machine")
    assert "another, " in note(first)
    save(folder, first)
    assert note(first) == "" and "--force" in note(first, force=True)
    folder.append(done(second).replace(num_examples=5))
    assert "file of its answers is missing" in note(second)


def test_a_line_that_is_not_whole_yet_is_read_later(jobs, folder):
    save(folder, jobs[0])
    folder.save_generations(jobs[1].id, [])
    ledger, line = Ledger(jobs), json.dumps(done(jobs[1]).to_row()) + "\n"
    for part, state in ((line[:10], "to do"), (line[10:], "done")):
        with folder.runs_path.open("a") as stream:
            stream.write(part)
        assert states(ledger, jobs) == ["done", state]
