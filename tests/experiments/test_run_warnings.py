from dataclasses import replace

import pytest

from ulskip_cli.core import cpu_load
from ulskip_cli.core.config import compose
from ulskip_cli.core.model_metadata import ModelMetadata
from ulskip_cli.engines.torch import cpu_kernels
from ulskip_cli.experiments.record import RunRecord
from ulskip_cli.experiments.record_sections import (
    PairedTiming,
    Provenance,
    QualityScores,
    RunIdentity,
    ScheduleRecord,
    Throughput,
)
from ulskip_cli.experiments.run_warnings import adjustments, run_warnings
from ulskip_cli.strategies.plan import make_plan


@pytest.fixture
def warned():
    """The warnings of a record with the given sections."""

    def call(*overrides, **sections):
        config = compose(["batch_size=4", *overrides])
        plan = replace(make_plan(config, ModelMetadata(12, None, None)), warnings=())
        record = RunRecord(RunIdentity.of(config, "0" * 12), provenance=Provenance(num_examples=3))
        return run_warnings(config, plan, replace(record, **sections))

    return call


def test_reduced_batches_are_named_with_their_size(warned):
    lines = warned(quality=QualityScores(evaluated_batch_size=1), timing=PairedTiming(timed_batch_size=2))
    named = [("evaluation" in line, "timing" in line, "batch_size=1" in line, "batch_size=2" in line) for line in lines]
    assert named == [(True, False, True, False), (False, True, False, True)]
    assert all("batch_size=4" in line for line in lines)
    assert warned(quality=QualityScores(evaluated_batch_size=4), timing=PairedTiming(timed_batch_size=4)) == ()


def test_truncated_sources_are_counted(warned):
    (line,) = warned(quality=QualityScores(num_truncated_sources=2))
    assert line.startswith("2 of 3 sources") and "decoding.max_new_tokens" in line


def test_truncated_references_are_counted(warned):
    (line,) = warned(quality=QualityScores(num_truncated_references=1))
    assert line.startswith("1 of 3 references") and "decode_loss" in line


def test_a_mean_depth_that_misses_its_target_is_reported_with_a_reason(warned):
    schedule = ScheduleRecord(target_kept_layers=4, evaluated_mean_kept_layers=5.0)
    exits = {"throughput": Throughput(exit_depths={"5": 1})}
    early = ["strategy=early_exit", "strategy.threshold=0.5", "strategy.horizon=9"]
    assert warned(*early, **exits, schedule=replace(schedule, evaluated_mean_kept_layers=4.1)) == ()
    (line,) = warned(*early, **exits, schedule=schedule)
    assert all(text in line for text in ("early_exit", " 4 layers", "5.00", "strategy.threshold"))
    (line,) = warned(*early, **exits, schedule=replace(schedule, calibration={"examples": 3}))
    assert all(text in line for text in ("3 calibration examples", "batch_size=4", "calibration.examples"))
    assert "strategy.threshold" not in line
    depth = replace(schedule, evaluated_mean_kept_layers=3.5)
    (line,) = warned("strategy=skip_decode", "strategy.horizon=9", schedule=depth)
    assert all(text in line for text in ("skip_decode", " 4 layers", "3.50", "strategy.horizon"))
    assert warned("ratio_basis=latency", schedule=depth) == ()


def test_a_kernel_that_was_not_built_is_named_with_what_ran_instead(warned, monkeypatch):
    monkeypatch.setattr(cpu_kernels, "build_failure", lambda: "no compiler")
    ran = Provenance(linear_backend="onednn", linear_backend_reason="no compiler")
    (line,) = warned(provenance=ran)
    assert "no compiler" in line and "onednn" in line
    assert warned(provenance=replace(ran, linear_backend_reason="asked for")) == ()


def test_weights_trained_for_other_layers_are_reported(warned):
    untrained = Provenance(trained_for_these_layers=False)
    (line,) = warned("ratio=2", provenance=untrained)
    assert line.startswith("unified with 6 of 12 layers")
    assert warned("strategy=full", provenance=untrained) == ()
    for corrected in (ScheduleRecord(skip_adapter={"path": "a"}), ScheduleRecord(patch={"kind": "full"})):
        assert warned("ratio=2", provenance=untrained, schedule=corrected) == ()


@pytest.mark.parametrize(
    ("measured", "overrides", "count"), [(1.53, [], 1), (0.3, [], 1), (0.9, [], 0), (1.53, ["decoding.draft_tokens=2"], 0)]
)
def test_a_prediction_that_is_far_off_is_reported(warned, measured, overrides, count):
    lines = warned(*overrides, schedule=ScheduleRecord(predicted_speedup=0.65), timing=PairedTiming(measured_speedup=measured))
    assert len(lines) == count
    assert all("0.65" in line and f"{measured:.2f}" in line for line in lines)


@pytest.mark.parametrize(("low", "coverage", "count"), [(1.2, 0.98, 0), (2.0, 0.98, 1), (2.0, None, 1), (4.7, 0.5, 0)])
def test_an_interval_that_includes_the_prediction_or_is_of_few_pairs_does_not_contradict_it(warned, low, coverage, count):
    timing = PairedTiming(4.7, low, 13.7, coverage)
    assert len(warned(schedule=ScheduleRecord(predicted_speedup=1.68), timing=timing)) == count


def test_a_record_without_measurements_needs_no_adjustments():
    config = compose([])
    assert adjustments(config, RunRecord(RunIdentity.of(config, "0" * 12))) == []


def test_a_busy_machine_is_named_if_its_cpus_were_needed(warned, monkeypatch):
    monkeypatch.setattr(cpu_load, "_cpus", lambda: {0, 1})

    def lines(others, threads, device="cpu"):
        provenance = Provenance(num_examples=3, device=device, environment={"threads": threads})
        return warned(timing=PairedTiming(other_cpus=others), provenance=provenance)

    (line,) = lines(1.25, 2)
    assert all(text in line for text in ("1.2 CPUs", "OMP_NUM_THREADS"))
    assert lines(0.1, 2) == lines(None, 2) == lines(1.0, 1) == lines(1.0, 2, "cuda:0") == ()
    assert len(lines(2.0, 2, "cuda:0")) == 1


def test_threads_that_slept_on_a_free_machine_are_named(warned, monkeypatch):
    monkeypatch.setattr(cpu_load, "_cpus", lambda: {0, 1})

    def lines(others, policy, device="cpu"):
        provenance = Provenance(num_examples=3, device=device, environment={"threads": 2, "wait_policy": policy})
        return warned(timing=PairedTiming(other_cpus=others), provenance=provenance)

    (line,) = lines(0.0, "PASSIVE")
    assert "OMP_WAIT_POLICY=PASSIVE" in line
    assert "OMP_WAIT_POLICY" not in lines(1.0, "PASSIVE")[0]
    assert lines(0.0, None) == lines(0.0, "PASSIVE", "cuda:0") == ()


def test_quantized_weights_on_a_cpu_are_slower_than_other_engines(warned):
    int8 = "model.quantization=torchao-int8"
    (line,) = warned(int8, provenance=Provenance(device="cpu"))
    assert int8 in line and "engine=" in line
    assert warned(int8, provenance=Provenance(device="cuda:0")) == warned(provenance=Provenance(device="cpu")) == ()
