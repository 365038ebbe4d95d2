import json

import pytest

from ulskip_cli.core import environment
from ulskip_cli.core.errors import NotApplicable, RunError, UsageError
from ulskip_cli.core.progress import ProgressCallback
from ulskip_cli.experiments.grid import points
from ulskip_cli.experiments.jobs import Sweep, failure_reason, make_jobs
from ulskip_cli.experiments.record import Record, read
from ulskip_cli.experiments.results import ResultsFolder


def jobs_of(*overrides):
    return make_jobs(points(list(overrides)))


def test_a_baseline_comes_before_its_points_and_once():
    jobs = jobs_of("ratio=2,3", "batch_size=1,2")
    assert [(job.config.strategy.name, job.config.batch_size, job.requested) for job in jobs] == [
        ("full", 1, False),
        ("unified", 1, True),
        ("full", 2, False),
        ("unified", 2, True),
        ("unified", 1, True),
        ("unified", 2, True),
    ]
    first, second = jobs[0].id, jobs[2].id
    assert [job.baseline for job in jobs] == [None, first, None, second, first, second]


def test_a_baseline_may_be_asked_for_or_not_needed():
    assert [job.requested for job in jobs_of("strategy=unified,full")] == [True, True]
    assert [job.baseline for job in jobs_of("ratio=2,3", "baseline=false")] == [None, None]
    assert jobs_of("ratio=1,2")[0].baseline is None  # ratio 1 keeps all


def test_the_full_model_has_nothing_to_correct():
    jobs = jobs_of("strategy=full,unified", "correction=none,patch", "ratio=2")
    assert [job.config.strategy.name for job in jobs] == ["full", "unified", "unified"]


def test_weights_are_loaded_once():
    jobs = jobs_of("ratio=2,3", "model=tiny,smollm2-135m", "baseline=false")
    names = [job.config.model.name for job in jobs]
    assert names == ["tiny", "tiny", "smollm2-135m", "smollm2-135m"]


def test_a_point_that_cannot_run_is_refused_alone():
    jobs = jobs_of("strategy=full,unified", "decoding=self_speculative", "batch_size=1")
    assert [isinstance(job.refused, NotApplicable) for job in jobs] == [True, False, False]
    missing = jobs_of("model=tiny,hf", "model.path=tiny", "baseline=false")
    assert [type(job.refused) for job in missing] == [type(None), UsageError]
    exits = ["strategy=early_exit", "strategy.batch=na", "batch_size=1,2"]
    for words in (exits, ["model=tiny,random"]):
        types = [type(job.refused) for job in jobs_of(*words, "baseline=false")]
        assert types == [type(None), NotApplicable]
    with pytest.raises(UsageError, match=r"ratio.*98"):
        jobs_of("ratio=98,99")


def test_a_failure_is_a_record_with_the_reason_in_one_line():
    row = jobs_of("ratio=2,99", "baseline=false")[1].failure_record(NotApplicable("x")).to_row()
    assert (row["status"], row["reason"], row["target_speedup"]) == ("n/a", "x", 99.0)
    assert failure_reason(RunError("a\n b")) == "a b"
    assert failure_reason(ValueError("a\n b")) == "ValueError: a b"
    assert failure_reason(MemoryError()) == "MemoryError"


@pytest.fixture
def jobs(tmp_path):
    return jobs_of("ratio=2,3", "baseline=false", f"results_dir={tmp_path}")


@pytest.fixture
def folder(jobs):
    return ResultsFolder.of(jobs[0].config)


def done(job, **machine):
    """A finished record of this machine, or of one that differs."""
    where = {**environment.code(), **environment.machine("cpu"), **machine}
    row = Record.joined(job.identity, device="cpu").to_row()
    return read(json.dumps({**row, "environment": where}))


def save(folder, job, **machine):
    """Store a finished record and its answers."""
    folder.save_generations(job.id, [])
    folder.save(job.config, done(job, **machine))


def make_sweep(jobs, **options):
    return Sweep(jobs, ProgressCallback(), **options)


def states(sweep, jobs):
    sweep.refresh()
    return [record.status if (record := sweep.record(job)) else "to do" for job in jobs]


def test_a_finished_point_is_done_for_good_unless_a_sweep_is_forced(jobs, folder):
    save(folder, jobs[0])
    sweep = make_sweep(jobs)
    folder.append(jobs[0].failure_record(RunError("x")))
    assert states(sweep, jobs) == ["done", "to do"]
    forced = make_sweep(jobs, force=True)
    assert states(forced, jobs) == ["to do", "to do"]
    joined = make_sweep(jobs, force=True, since=2)
    save(folder, jobs[0])
    assert states(forced, jobs) == states(joined, jobs) == ["done", "to do"]


def test_answers_are_part_of_a_finished_point_except_with_random_weights(jobs, folder):
    for num_examples, state in ((5, "to do"), (0, "done")):
        folder.append(done(jobs[0]).replace(num_examples=num_examples))
        assert states(make_sweep(jobs), jobs[:1]) == [state]
        assert (folder.record(jobs[0].id) is not None) is (state == "done")


def test_failures_of_an_earlier_sweep_are_to_do(jobs, folder):
    folder.append(jobs[0].failure_record(RunError("x")))
    sweep = make_sweep(jobs)
    assert sweep.describe(jobs[0]) == ("to do", "failed before: x")
    folder.append(jobs[1].failure_record(RunError("y")))
    assert states(sweep, jobs) == ["to do", "failed"]


@pytest.mark.parametrize(("launcher", "state"), [("inline", "to do"), ("ray", "done")])
def test_rows_of_other_machines_are_to_do_until_this_sweep_has_run_them(tmp_path, launcher, state):
    jobs = jobs_of("ratio=2,3", f"results_dir={tmp_path}", f"launcher={launcher}")[1:]
    folder = ResultsFolder.of(jobs[0].config)
    save(folder, jobs[0], processor="another")
    sweep = make_sweep(jobs)
    assert states(sweep, jobs[:1]) == [state]
    save(folder, jobs[0], processor="another")  # by a worker elsewhere
    assert states(sweep, jobs[:1]) == ["done"]


def test_the_reason_is_told_why_a_point_with_a_row_is_to_do(jobs, folder):
    first, second = jobs

    def note(job, **options):
        return Sweep(jobs, **options).describe(job)[1]

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
    sweep, line = make_sweep(jobs), json.dumps(done(jobs[1]).to_row()) + "\n"
    for part, state in ((line[:10], "to do"), (line[10:], "done")):
        with folder.runs_path.open("a") as stream:
            stream.write(part)
        assert states(sweep, jobs) == ["done", state]
