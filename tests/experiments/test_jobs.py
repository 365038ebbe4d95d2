import pytest

from ulskip_cli.core.errors import NotApplicable, RunError, UsageError
from ulskip_cli.experiments.grid import grid_configs
from ulskip_cli.experiments.ledger import failure_reason, make_jobs


def jobs_of(*overrides):
    return make_jobs(grid_configs(list(overrides)))


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
    assert [job.baseline_id for job in jobs] == [None, first, None, second, first, second]


def test_a_baseline_may_be_asked_for_or_not_needed():
    assert [job.requested for job in jobs_of("strategy=unified,full")] == [True, True]
    assert [job.baseline_id for job in jobs_of("ratio=2,3", "baseline=false")] == [None, None]
    assert jobs_of("ratio=1,2")[0].baseline_id is None  # ratio 1 keeps all


def test_the_full_model_has_nothing_to_correct():
    jobs = jobs_of("strategy=full,unified", "correction=none,patch", "ratio=2")
    assert [job.config.strategy.name for job in jobs] == ["full", "unified", "unified"]


def test_weights_are_loaded_once():
    jobs = jobs_of("ratio=2,3", "model=tiny,smollm2-135m", "baseline=false")
    names = [job.config.model.name for job in jobs]
    assert names == ["tiny", "tiny", "smollm2-135m", "smollm2-135m"]


def test_a_point_that_cannot_run_is_refused_alone():
    jobs = jobs_of("strategy=skip_decode,unified", "decoding=self_speculative", "batch_size=1")
    assert [isinstance(job.refusal, NotApplicable) for job in jobs] == [True, False, False]
    missing = jobs_of("model=tiny,hf", "model.path=tiny", "baseline=false")
    assert [type(job.refusal) for job in missing] == [type(None), UsageError]
    exits = ["strategy=early_exit", "strategy.batch=na", "batch_size=1,2"]
    for words in (exits, ["model=tiny,random"]):
        types = [type(job.refusal) for job in jobs_of(*words, "baseline=false")]
        assert types == [type(None), NotApplicable]
    with pytest.raises(UsageError, match=r"ratio.*98"):
        jobs_of("ratio=98,99")


def test_a_failure_is_a_record_with_the_reason_in_one_line():
    row = jobs_of("ratio=2,99", "baseline=false")[1].failure_record(NotApplicable("x")).to_row()
    assert (row["status"], row["reason"], row["target_speedup"]) == ("n/a", "x", 99.0)
    assert failure_reason(RunError("a\n b")) == "a b"
    assert failure_reason(ValueError("a\n b")) == "ValueError: a b"
    assert failure_reason(MemoryError()) == "MemoryError"
