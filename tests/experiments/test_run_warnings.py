from dataclasses import replace

import pytest

from ulskip_cli.core import cpu_load
from ulskip_cli.core.config import compose
from ulskip_cli.core.model_metadata import ModelMetadata
from ulskip_cli.engines.torch import cpu_kernels
from ulskip_cli.experiments.describe import run_warnings
from ulskip_cli.experiments.record import CorrectionUsed, Environment, Point, Record
from ulskip_cli.strategies.plan import make_plan


@pytest.fixture
def warned(monkeypatch):
    """Return a function that gives the warnings of a record on a machine with two CPUs."""
    monkeypatch.setattr(cpu_load, "_cpus", lambda: {0, 1})
    monkeypatch.setattr(cpu_kernels, "build_failure", lambda: "no compiler")

    def call(*overrides, threads=2, **values):
        config = compose(["batch_size=4", *overrides])
        plan = replace(make_plan(config, ModelMetadata(12, None, None)), warnings=())
        packages = {"torch": "2", "transformers": "5"}
        machine = Environment(ulskip="0", packages=packages, threads=threads)
        point = Point.of(config, "0" * 12)
        record = Record.joined(point, num_examples=3, environment=machine, **values)
        return run_warnings(config, plan, record)

    return call


EXIT = ["strategy=early_exit", "strategy.threshold=0.5", "strategy.horizon=9"]
EXITED = {"exit_depths": {"5": 1}, "target_kept_layers": 4.0}
MISSED = {**EXITED, "evaluated_mean_kept_layers": 5.0}
NOT_BUILT = {"linear_backend": "onednn", "linear_backend_reason": "no compiler"}
UNTRAINED = {"trained_for_these_layers": False}
PATCH = CorrectionUsed(name="patch", kind="full")
SKIP_DECODE = ["strategy=skip_decode", "strategy.horizon=9"]


@pytest.mark.parametrize(
    ("overrides", "values", "parts"),
    [
        ([], {"evaluated_batch_size": 1}, ["evaluation", "batch_size=4", "batch_size=1 "]),
        ([], {"timed_batch_size": 2}, ["timing", "batch_size=4", "batch_size=2 "]),
        ([], {"num_truncated_sources": 2}, ["2 of 3 sources", "decoding.max_new_tokens"]),
        ([], {"num_truncated_references": 1}, ["1 of 3 references", "decode_loss"]),
        (EXIT, MISSED, ["early_exit", " 4.0 layers", "5.00", "strategy.threshold"]),
        (
            SKIP_DECODE,
            {"target_kept_layers": 4.0, "evaluated_mean_kept_layers": 3.5},
            ["skip_decode", " 4.0 layers", "3.50", "strategy.horizon"],
        ),
        ([], NOT_BUILT, ["no compiler", "onednn"]),
        (["ratio=2"], UNTRAINED, ["unified with 6 of 12 layers"]),
        ([], {"other_cpus": 1.25}, ["1.2 CPUs", "OMP_NUM_THREADS", "--force"]),
        ([], {"other_cpus": 2.0, "device": "cuda:0"}, ["2.0 CPUs"]),
    ],
)
def test_a_difference_between_request_and_run_is_one_warning(warned, overrides, values, parts):
    (line,) = warned(*overrides, **values)
    assert all(part in line for part in parts)


@pytest.mark.parametrize(
    ("overrides", "values"),
    [
        ([], {"evaluated_batch_size": 4, "timed_batch_size": 4}),
        (EXIT, {**EXITED, "evaluated_mean_kept_layers": 4.1}),
        (["ratio_basis=latency"], MISSED),
        ([], {"linear_backend": "onednn", "linear_backend_reason": "asked for"}),
        (["strategy=full"], UNTRAINED),
        (["ratio=2"], {**UNTRAINED, "correction": PATCH}),
        ([], {"other_cpus": 0.1}),
        ([], {"other_cpus": 1.0, "threads": 1}),
        ([], {"other_cpus": 1.0, "device": "cuda:0"}),
        ([], {"task": None, **MISSED, **UNTRAINED}),
    ],
)
def test_a_run_as_requested_has_no_warning(warned, overrides, values):
    assert warned(*overrides, **values) == ()
