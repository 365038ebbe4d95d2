from dataclasses import replace

import pytest

from ulskip_cli.core import environment
from ulskip_cli.core.config import compose
from ulskip_cli.core.fingerprint import digest
from ulskip_cli.core.model_metadata import ModelMetadata
from ulskip_cli.engines.base import BatchOutput, DraftStats, ExitStats
from ulskip_cli.engines.torch import kernels
from ulskip_cli.experiments.describe import measure_throughput, run_warnings, sum_exits
from ulskip_cli.experiments.record import CorrectionUsed, Environment, Record, Settings
from ulskip_cli.strategies.plan import make_plan


@pytest.fixture
def warned(monkeypatch):
    """Return a function that gives the warnings of a record on a machine with two CPUs."""
    monkeypatch.setattr(environment, "cpus", lambda: {0, 1})
    monkeypatch.setattr(kernels, "build_failure", lambda: "no compiler")

    def call(*overrides, threads=2, **values):
        config = compose(["batch_size=4", *overrides])
        plan = replace(make_plan(config, ModelMetadata(12, None, None)), warnings=())
        packages = {"torch": "2", "transformers": "5"}
        machine = Environment(ulskip="0", packages=packages, threads=threads)
        point = Settings.of(config, "0" * 12)
        record = Record.joined(point).replace(num_examples=3, environment=machine, **values)
        return run_warnings(config, plan, record)

    return call


EXIT = ["strategy=early_exit", "strategy.threshold=0.5", "strategy.horizon=9"]
STAGED = ["strategy=skip_decode", "strategy.horizon=9"]
EXITED = {"exit_depths": {"5": 1}, "target_kept_layers": 4.0}
MISSED = {**EXITED, "evaluated_mean_kept_layers": 5.0}
NOT_BUILT = {"linear_backend": "torch", "linear_backend_reason": "no compiler"}
CUT_OFF = {"degenerate": {"hit_limit": 2}}
UNTRAINED = {"trained_for_these_layers": False}
PATCH = CorrectionUsed(name="patch", kind="full")


@pytest.mark.parametrize(
    ("overrides", "values", "parts"),
    [
        ([], {"evaluated_batch_size": 1}, ["evaluation", "batch_size=4", "batch_size=1 "]),
        ([], {"num_truncated_sources": 2}, ["2 of 3 sources", "max_new_tokens"]),
        (["max_new_tokens=9"], CUT_OFF, ["2 of 3 answers were cut off", "tokens=9"]),
        ([], {"num_truncated_references": 1}, ["1 of 3 references", "decode_loss"]),
        (EXIT, MISSED, ["early_exit", " 4.0 layers", "5.00", "strategy.threshold"]),
        (EXIT, {**MISSED, "calibration": {"examples": 3}}, ["raise calibration.examples"]),
        (STAGED, MISSED, ["skip_decode", "strategy.horizon"]),
        ([], NOT_BUILT, ["no compiler", "layer by layer", "C++"]),
        (["ratio=2"], UNTRAINED, ["unified with 6 of 12 layers"]),
        ([], {"other_cpus": 1.25}, ["1.2 CPUs", "OMP_NUM_THREADS", "--force"]),
        (
            ["prompt_layers=kept"],
            {"correction": PATCH.replace(prompt_layers="all")},
            ["use prompt_layers=all"],
        ),
    ],
)
def test_a_difference_between_request_and_run_is_one_warning(warned, overrides, values, parts):
    (line,) = warned(*overrides, **values)
    assert all(part in line for part in parts)


@pytest.mark.parametrize(
    ("overrides", "values"),
    [
        ([], {"evaluated_batch_size": 4, "timed_batch_size": 4}),
        ([], {"degenerate": {"hit_limit": 1}}),
        (EXIT, {**EXITED, "evaluated_mean_kept_layers": 4.1}),
        (["strategy=full"], UNTRAINED),
        (["ratio=2"], {**UNTRAINED, "correction": PATCH}),
        ([], {"other_cpus": 0.1}),
        ([], {"other_cpus": 1.0, "threads": 1}),
        ([], {"command": "bench", **MISSED, **UNTRAINED}),
    ],
)
def test_a_run_as_requested_has_no_warning(warned, overrides, values):
    assert warned(*overrides, **values) == ()


@pytest.mark.parametrize(
    ("first", "end", "offset", "count"), [(0, 9, 0, 1), (0, 9, 8, 1), (0, 9, 9, 0), (3, 9, 0, 0)]
)
def test_scores_on_trained_examples_are_warned_of(warned, first, end, offset, count):
    location = digest(compose([]).task.location)
    examples = {"locations": [location], "first": first, "end": end}
    used = CorrectionUsed(name="adapter", training={"trained_on": examples})
    for values in ({"trained_for": {"trained_on": examples}}, {"correction": used}):
        lines = warned(f"offset={offset}", **values)
        assert len(lines) == count and all(f"offset={end}" in line for line in lines)
        for other in ("task.pair=en-de", "task=cnn_dm"):
            assert warned(f"offset={offset}", other, **values) == ()


def test_corrections_of_another_task_are_warned_of(warned):
    corrections = [PATCH.replace(task=task) for task in ("cnn_dm", "wmt", None)]
    (line,), *others = [warned("ratio=2", correction=patch) for patch in corrections]
    assert "correction was made on examples of task=cnn_dm" in line and "calibrate on wmt" in line
    assert others == [(), ()]


OUTPUTS = [
    BatchOutput([[1, 2, 3], [4]], [False, False], 10, 0.5, 1.0, 2.0, 0, 0),
    BatchOutput([[5, 6]], [False], 6, 0.5, 1.0, 1.0, 0, 0),
]


def test_both_conventions_of_tokens_per_second():
    measured = measure_throughput(OUTPUTS, "evaluation")
    assert measured.decode_tokens_per_second == pytest.approx((2 + 0 + 1) / 3)
    assert measured.total_tokens_per_second == pytest.approx((16 + 6) / 5)
    assert measured.throughput_from == "evaluation"


def test_drafts_and_exits_are_summed_before_they_are_divided():
    one = DraftStats(checks=2, gained=6, drafted=8, accepted=4)
    other = DraftStats(checks=1, gained=1, drafted=2, accepted=0)
    outputs = [replace(OUTPUTS[0], drafts=one), replace(OUTPUTS[1], drafts=other)]
    drafted = measure_throughput(outputs, "evaluation")
    assert (drafted.acceptance_rate, drafted.mean_accepted_length) == (4 / 10, 7 / 3)
    early, late = ExitStats({2: 3, 6: 1}, 0.3), ExitStats({2: 1}, 0.1)
    outputs = [replace(OUTPUTS[0], exits=early), replace(OUTPUTS[1], exits=late)]
    exited = measure_throughput(outputs, "evaluation")
    assert exited.exit_depths == {"2": 4, "6": 1}
    assert exited.exit_check_fraction == pytest.approx(0.4 / 3)
    assert sum_exits(outputs).mean_depth == pytest.approx(14 / 5)
