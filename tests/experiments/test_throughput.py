from dataclasses import replace

import pytest

from ulskip_cli.engines.base import BatchOutput, DraftStats, ExitStats
from ulskip_cli.experiments.describe import measure_throughput, sum_exits

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
    one, other = (
        DraftStats(checks=2, gained=6, drafted=8, accepted=4),
        DraftStats(checks=1, gained=1, drafted=2, accepted=0),
    )
    drafted = measure_throughput(
        [replace(OUTPUTS[0], drafts=one), replace(OUTPUTS[1], drafts=other)], "evaluation"
    )
    assert (drafted.acceptance_rate, drafted.mean_accepted_length) == (4 / 10, 7 / 3)
    early, late = ExitStats({2: 3, 6: 1}, 0.3), ExitStats({2: 1}, 0.1)
    outputs = [replace(OUTPUTS[0], exits=early), replace(OUTPUTS[1], exits=late)]
    exited = measure_throughput(outputs, "evaluation")
    assert exited.exit_depths == {"2": 4, "6": 1}
    assert exited.exit_check_fraction == pytest.approx(0.4 / 3)
    assert sum_exits(outputs).mean_depth == pytest.approx(14 / 5)
