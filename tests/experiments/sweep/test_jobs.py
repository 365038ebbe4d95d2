import pytest

from ulskip_cli.core.errors import NotApplicable, RunError, UsageError
from ulskip_cli.experiments.preflight import resolve
from ulskip_cli.experiments.sweep.grid import points
from ulskip_cli.experiments.sweep.jobs import failure_reason, make_jobs


def jobs(*overrides):
    return make_jobs(points(list(overrides)))


def test_a_baseline_comes_before_its_points_and_once():
    found = jobs("ratio=2,3", "batch_size=1,2")
    assert [(job.config.strategy.name, job.config.batch_size, job.requested) for job in found] == [
        ("full", 1, False),
        ("unified", 1, True),
        ("full", 2, False),
        ("unified", 2, True),
        ("unified", 1, True),
        ("unified", 2, True),
    ]
    assert [job.baseline for job in found] == [
        None,
        found[0].id,
        None,
        found[2].id,
        found[0].id,
        found[2].id,
    ]


def test_a_baseline_that_is_asked_for_is_a_point():
    assert [(job.config.strategy.name, job.requested) for job in jobs("strategy=unified,full")] == [
        ("full", True),
        ("unified", True),
    ]
    assert [job.baseline for job in jobs("ratio=2,3", "baseline=false")] == [None, None]
    assert [job.baseline for job in jobs("ratio=1,2", "strategy=unified")][:2] == [
        None,
        None,
    ]  # ratio 1 keeps all


def test_a_job_has_its_points_name():
    job = jobs("ratio=2,3", "baseline=false")[0]
    assert job.id == job.point.run_id == resolve(job.config).run_id


def test_weights_are_loaded_once():
    found = jobs("ratio=2,3", "model=tiny,smollm2-135m", "baseline=false")
    assert [job.config.model.name for job in found] == [
        "tiny",
        "tiny",
        "smollm2-135m",
        "smollm2-135m",
    ]


def test_labels_say_what_differs():
    assert [job.label for job in jobs("ratio=2,3", "baseline=false")] == [
        "unified ratio 2",
        "unified ratio 3",
    ]
    found = jobs(
        "strategy=full,unified", "batch_size=1,2", "decoding=greedy,beam", "baseline=false"
    )
    assert found[0].label == "full decoding greedy batch 1"
    assert found[-1].label == "unified ratio 2 decoding beam batch 2"
    found = jobs(
        "strategy=unified,early_exit", "strategy.batch=min,na", "batch_size=1", "baseline=false"
    )
    assert [job.label for job in found] == [
        "unified ratio 2",
        "early_exit ratio 2 batch min",
        "early_exit ratio 2 batch na",
    ]


def test_what_cannot_be_run_is_refused_alone():
    found = jobs("strategy=full,unified", "decoding=self_speculative")
    assert [
        (job.config.strategy.name, job.config.decoding.draft_tokens > 0, bool(job.refused))
        for job in found
    ] == [
        ("full", True, True),
        ("full", False, False),
        ("unified", True, False),
    ]
    assert isinstance(found[0].refused, NotApplicable)
    assert [type(job.refused) for job in jobs("ratio=2,99", "baseline=false")] == [
        type(None),
        NotApplicable,
    ]
    missing = jobs("model=tiny,hf", "model.path=tiny", "baseline=false")
    assert [type(job.refused) for job in missing] == [type(None), UsageError]


def test_what_is_wrong_with_every_point_is_the_sweeps():
    with pytest.raises(UsageError, match=r"ratio.*98"):
        jobs("ratio=98,99")
    with pytest.raises(UsageError, match=r"batch_size.*0"):
        points(["batch_size=0,1"])


def test_a_row_without_a_result_says_why():
    row = jobs("ratio=2,99", "baseline=false")[1].failure_record(NotApplicable("x")).to_row()
    assert (row["status"], row["reason"], row["target_speedup"]) == ("n/a", "x", 99.0)
    assert "kept_layers" not in row
    failed = jobs("ratio=2,3")[1].failure_record(ValueError("x"))
    assert (failed.status, failed.reason) == ("failed", "ValueError: x")


def test_reasons_are_one_line():
    assert failure_reason(RunError("a\n b")) == "a b"
    assert failure_reason(ValueError("a\n b")) == "ValueError: a b"
    assert failure_reason(MemoryError()) == "MemoryError"
