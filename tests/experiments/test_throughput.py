from dataclasses import replace

import pytest

from ulskip_cli.experiments.throughput import draft_statistics, exit_statistics, throughput
from ulskip_cli.inference.engines.base import BatchOutput, DraftStats, ExitStats

OUTPUTS = [
    BatchOutput([[1, 2, 3], [4]], [False, False], 10, 0.5, 1.0, 2.0, 0, 0),
    BatchOutput([[5, 6]], [False], 6, 0.5, 1.0, 1.0, 0, 0),
]


def test_both_conventions_of_tokens_per_second():
    told = throughput(OUTPUTS, "evaluation")
    assert told["decode_tokens_per_second"] == pytest.approx((2 + 0 + 1) / 3)
    assert told["total_tokens_per_second"] == pytest.approx((16 + 6) / 5)


def test_what_did_not_happen_has_no_keys():
    assert draft_statistics(OUTPUTS) == exit_statistics(OUTPUTS) == {}


def test_drafts_and_exits_are_summed_before_they_are_divided():
    one, other = DraftStats(passes=2, gained=6, drafted=8, accepted=4), DraftStats(passes=1, gained=1, drafted=2, accepted=0)
    told = draft_statistics([replace(OUTPUTS[0], drafts=one), replace(OUTPUTS[1], drafts=other)])
    assert told == {"acceptance_rate": 4 / 10, "mean_accepted_length": 7 / 3}
    one, other = ExitStats({2: 3, 6: 1}, 0.3), ExitStats({2: 1}, 0.1)
    told = exit_statistics([replace(OUTPUTS[0], exits=one), replace(OUTPUTS[1], exits=other)])
    assert told["exit_depths"] == {"2": 4, "6": 1}
    assert told["mean_kept_layers"] == pytest.approx(14 / 5)
    assert told["head_share"] == pytest.approx(0.4 / 3)
