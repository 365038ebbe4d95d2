from dataclasses import replace

import pytest

from ulskip_cli.core import cpu_load
from ulskip_cli.core.config import compose
from ulskip_cli.core.model_metadata import ModelMetadata
from ulskip_cli.engines.torch import cpu_kernels
from ulskip_cli.experiments.record import CorrectionUsed, Environment, Point, Record
from ulskip_cli.experiments.run_warnings import adjustments, run_warnings
from ulskip_cli.strategies.plan import make_plan


def timed(measured, low, high=None):
    return {
        "measured_speedup": measured,
        "measured_speedup_low": low,
        "measured_speedup_high": high or measured,
    }


def machine(**values):
    return Environment(ulskip="0", packages={"torch": "2", "transformers": "5"}, **values)


@pytest.fixture
def warned():
    """The warnings of a record with the given values."""

    def call(*overrides, **values):
        config = compose(["batch_size=4", *overrides])
        plan = replace(make_plan(config, ModelMetadata(12, None, None)), warnings=())
        record = Record.joined(Point.of(config, "0" * 12), num_examples=3)
        return run_warnings(config, plan, record.replace(**values))

    return call


def test_reduced_batches_are_named_with_their_size(warned):
    lines = warned(evaluated_batch_size=1, timed_batch_size=2)
    named = [
        ("evaluation" in line, "timing" in line, "batch_size=1" in line, "batch_size=2" in line)
        for line in lines
    ]
    assert named == [(True, False, True, False), (False, True, False, True)]
    assert all("batch_size=4" in line for line in lines)
    assert warned(evaluated_batch_size=4, timed_batch_size=4) == ()


def test_truncated_sources_are_counted(warned):
    (line,) = warned(num_truncated_sources=2)
    assert line.startswith("2 of 3 sources") and "decoding.max_new_tokens" in line


def test_truncated_references_are_counted(warned):
    (line,) = warned(num_truncated_references=1)
    assert line.startswith("1 of 3 references") and "decode_loss" in line


def test_a_mean_depth_that_misses_its_target_is_reported_with_a_reason(warned):
    depths = {"target_kept_layers": 4.0, "evaluated_mean_kept_layers": 5.0}
    exits = {"exit_depths": {"5": 1}}
    early = ["strategy=early_exit", "strategy.threshold=0.5", "strategy.horizon=9"]
    assert warned(*early, **exits, **{**depths, "evaluated_mean_kept_layers": 4.1}) == ()
    (line,) = warned(*early, **exits, **depths)
    assert all(text in line for text in ("early_exit", " 4.0 layers", "5.00", "strategy.threshold"))
    (line,) = warned(*early, **exits, **depths, calibration={"examples": 3})
    assert all(
        text in line for text in ("3 calibration examples", "batch_size=4", "calibration.examples")
    )
    assert "strategy.threshold" not in line
    depths["evaluated_mean_kept_layers"] = 3.5
    (line,) = warned("strategy=skip_decode", "strategy.horizon=9", **depths)
    assert all(text in line for text in ("skip_decode", " 4.0 layers", "3.50", "strategy.horizon"))
    assert warned("ratio_basis=latency", **depths) == ()


def test_a_kernel_that_was_not_built_is_named_with_what_ran_instead(warned, monkeypatch):
    monkeypatch.setattr(cpu_kernels, "build_failure", lambda: "no compiler")
    (line,) = warned(linear_backend="onednn", linear_backend_reason="no compiler")
    assert "no compiler" in line and "onednn" in line
    assert warned(linear_backend="onednn", linear_backend_reason="asked for") == ()


def test_weights_trained_for_other_layers_are_reported(warned):
    untrained = {"trained_for_these_layers": False}
    (line,) = warned("ratio=2", **untrained)
    assert line.startswith("unified with 6 of 12 layers")
    assert warned("strategy=full", **untrained) == ()
    assert (
        warned("ratio=2", **untrained, correction=CorrectionUsed(name="patch", kind="full")) == ()
    )


@pytest.mark.parametrize(
    ("measured", "overrides", "count"),
    [(1.53, [], 1), (0.3, [], 1), (0.9, [], 0), (1.53, ["decoding.draft_tokens=2"], 0)],
)
def test_a_prediction_that_is_far_off_is_reported(warned, measured, overrides, count):
    lines = warned(*overrides, predicted_speedup=0.65, **timed(measured, measured))
    assert len(lines) == count
    assert all("0.65" in line and f"{measured:.2f}" in line for line in lines)


@pytest.mark.parametrize(
    ("low", "coverage", "count"), [(1.2, 0.98, 0), (2.0, 0.98, 1), (2.0, None, 1), (4.7, 0.5, 0)]
)
def test_an_interval_that_includes_the_prediction_or_is_of_few_pairs_does_not_contradict_it(
    warned, low, coverage, count
):
    timing = timed(4.7, low, 13.7) | {"speedup_interval_coverage": coverage}
    assert len(warned(predicted_speedup=1.68, **timing)) == count


def test_a_record_without_measurements_needs_no_adjustments():
    config = compose([])
    assert adjustments(config, Record.joined(Point.of(config, "0" * 12))) == []


def test_a_busy_machine_is_named_if_its_cpus_were_needed(warned, monkeypatch):
    monkeypatch.setattr(cpu_load, "_cpus", lambda: {0, 1})

    def lines(others, threads, device="cpu"):
        return warned(other_cpus=others, device=device, environment=machine(threads=threads))

    (line,) = lines(1.25, 2)
    assert all(text in line for text in ("1.2 CPUs", "OMP_NUM_THREADS"))
    assert lines(0.1, 2) == lines(None, 2) == lines(1.0, 1) == lines(1.0, 2, "cuda:0") == ()
    assert len(lines(2.0, 2, "cuda:0")) == 1


def test_threads_that_slept_on_a_free_machine_are_named(warned, monkeypatch):
    monkeypatch.setattr(cpu_load, "_cpus", lambda: {0, 1})

    def lines(others, policy, device="cpu"):
        return warned(
            other_cpus=others, device=device, environment=machine(threads=2, wait_policy=policy)
        )

    (line,) = lines(0.0, "PASSIVE")
    assert "OMP_WAIT_POLICY=PASSIVE" in line
    assert "OMP_WAIT_POLICY" not in lines(1.0, "PASSIVE")[0]
    assert lines(0.0, None) == lines(0.0, "PASSIVE", "cuda:0") == ()


def test_quantized_weights_on_a_cpu_are_slower_than_other_engines(warned):
    int8 = "model.quantization=torchao-int8"
    (line,) = warned(int8, device="cpu")
    assert int8 in line and "engine=" in line
    assert warned(int8, device="cuda:0") == warned(device="cpu") == ()
