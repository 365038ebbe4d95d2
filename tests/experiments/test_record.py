import pytest

from ulskip_cli.core.config import instantiate
from ulskip_cli.experiments.preflight import check_schedule
from ulskip_cli.experiments.runner import identity_row
from ulskip_cli.experiments.sweep.grid import points
from ulskip_cli.experiments.sweep.jobs import make_jobs
from ulskip_cli.experiments.workload import Workload

OF_THE_OUTCOME = {"status", "layer_ratio", "kept_layers", "warnings"}
EVERY_LAYER = "[0,1,2,3,4,5,6,7,8,9,10,11]"


@pytest.mark.parametrize(
    "overrides",
    [
        ["strategy=unified", "ratio=2", "ratio_basis=cost", "prompt_layers=kept"],
        ["strategy=unified", "ratio=1", "prompt_layers=kept"],
        ["strategy=full", "ratio=3", "prompt_layers=kept"],
        ["strategy=custom", f"strategy.layers={EVERY_LAYER}"],
        ["strategy=custom", "strategy.layers=[0,11]", "ratio=3"],
        ["strategy=early_exit", "ratio=2"],
        ["strategy=skip_decode", "ratio=2"],
    ],
)
def test_a_failed_and_a_finished_row_of_a_point_agree(overrides):
    (job,) = make_jobs(points([*overrides, "batch_size=1", "baseline=false"]))
    failed = job.failure_row(ValueError(), "x")
    work = Workload(instantiate(job.config.task, "task"), (), None, 0, None)
    finished = identity_row(job.config, check_schedule(job.config)[1], work, job.id, job.baseline)
    shared = (failed.keys() & finished.keys()) - OF_THE_OUTCOME
    assert {"target_speedup", "identity", "strategy_options"} < shared
    assert {key: failed[key] for key in shared} == {key: finished[key] for key in shared}
