import pytest
from report_rows import ENVIRONMENT, sweep_row

from ulskip_cli.core import environment
from ulskip_cli.experiments.sweep.estimate import expected_seconds, to_run
from ulskip_cli.experiments.sweep.grid import points
from ulskip_cli.experiments.sweep.jobs import Sweep, make_jobs


def stored(job, seconds, **values):
    where = {**ENVIRONMENT, "processor": environment.processor()}
    row = sweep_row(environment=where, wall_seconds=seconds, **values)
    return row.replace(**dict(job.identity))


@pytest.fixture
def jobs(tmp_path):
    wanted = ["model=tiny", "ratio=2,3", "batch_size=1,8", "limit=4", f"results_dir={tmp_path}"]
    return make_jobs(points(wanted))


def test_points_take_as_long_as_finished_ones_of_the_same_model_data_and_batch_size(jobs):
    small = [job for job in jobs if job.config.batch_size == 1]
    records = [stored(small[0], seconds) for seconds in (10.0, 20.0, 90.0)]
    assert expected_seconds(small, records) == len(small) * 20
    assert expected_seconds(jobs, records) is None  # nothing is known of batch size 8
    assert expected_seconds(small, [stored(small[0], 10.0, status="failed")]) is None


def test_a_sweep_says_what_it_will_run(jobs, tmp_path):
    planned = Sweep(jobs)
    assert to_run(planned).startswith("6 of 6 points to run; the time that they take is estimated")
