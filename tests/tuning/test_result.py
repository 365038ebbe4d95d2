from types import SimpleNamespace

import pytest
from report_rows import sweep_row

from ulskip_cli.core.config import compose_tuning
from ulskip_cli.tuning.result import TuneResult


@pytest.mark.parametrize(
    ("coverage", "words"),
    [(0.984375, "surely met"), (0.0, "met, without an interval: too few examples or timed pairs")],
)
def test_a_speedup_is_surely_met_only_with_enough_pairs_and_warnings_stay(coverage, words):
    config = compose_tuning(["speedup=1.5"])
    warnings = ["unified: 2 CPUs were busy"]
    row = sweep_row(speedup=2.0, speedup_interval_coverage=coverage, warnings=warnings)
    chosen = SimpleNamespace(
        trial=SimpleNamespace(kept_layers=(0, 2, 5), candidate="unified", adapter=None, patch=None)
    )
    request = SimpleNamespace(config=config, num_layers=6, overrides=["speedup=1.5"])
    lines = TuneResult(request, chosen, row, (), None, 1.0).lines()
    assert f"goal:     speedup=1.5 is {words}" in lines
    assert lines[-1] == "warning:  2 CPUs were busy"
