from types import SimpleNamespace

import pytest
from report_rows import sweep_row

from ulskip_cli.core.config import compose_tuning
from ulskip_cli.tuning.result import TuneResult


def result(wish, row):
    chosen = SimpleNamespace(
        trial=SimpleNamespace(kept_layers=(0, 2, 5), candidate="unified", adapter=None, patch=None)
    )
    request = SimpleNamespace(config=compose_tuning([wish]), num_layers=6, overrides=[wish])
    return TuneResult(request, chosen, row, (), None, 1.0)


@pytest.mark.parametrize(
    ("coverage", "words"), [(0.984375, "surely met"), (0.0, "met, but not surely")]
)
def test_a_speedup_is_surely_met_only_with_enough_pairs_and_warnings_stay(coverage, words):
    warnings = ["unified: 2 CPUs were busy"]
    row = sweep_row(speedup=2.0, speedup_interval_coverage=coverage, warnings=warnings)
    lines = result("speedup=1.5", row).lines()
    assert f"goal:     speedup=1.5 is {words}" in lines
    assert lines[-1] == "warning:  2 CPUs were busy"
