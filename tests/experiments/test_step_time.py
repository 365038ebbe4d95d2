import pytest

from ulskip_cli.core.weight_sizes import WeightSizes
from ulskip_cli.experiments.step_time import StepTimeBreakdown, StepWork, layer_seconds

WEIGHTS, PARAMETERS = WeightSizes(100, (10, 20, 30)), WeightSizes(50, (5, 10, 15))


def test_a_step_reads_head_kept_layers_and_the_cache_of_every_sequence():
    work = StepWork.of(WEIGHTS, PARAMETERS, {0: 1.0, 2: 1.0}, kv_bytes=7.0, batch_size=3)
    assert work.bytes == 100 + 10 + 30 + 3 * 7
    assert work.flops == 2 * 3 * (50 + 5 + 15)


def test_a_layer_that_half_of_the_steps_run_counts_half():
    work = StepWork.of(WEIGHTS, PARAMETERS, {0: 1.0, 1: 0.5}, kv_bytes=0.0, batch_size=1)
    assert (work.bytes, work.flops) == (100 + 10 + 10, 2 * (50 + 5 + 5))


def test_what_is_unknown_stays_unknown():
    assert StepWork.of(None, None, {0: 1.0}, 7.0, 3) == StepWork(None, None)


def test_the_slope_between_two_depths_is_a_layers_cost():
    assert layer_seconds(1 + 6 * 0.5, 1 + 2 * 0.5, 6, 2) == pytest.approx(0.5)
    assert layer_seconds(4.0, 4.0, 6, 6) is None


def test_the_parts_of_a_step_add_up():
    parts = StepTimeBreakdown(step_seconds=4.0, head_seconds=0.5, layers_seconds=3.0).as_dict()
    assert parts == {"step_seconds": 4.0, "head_seconds": 0.5, "layers_seconds": 3.0, "other_seconds": 0.5}
    assert StepTimeBreakdown(4.0, 0.5, None).as_dict()["other_seconds"] is None
