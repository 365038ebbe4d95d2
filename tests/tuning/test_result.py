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


def test_a_choice_without_a_measurable_gain_is_told_and_commands_name_model_and_task():
    lines = result("quality=0.9", sweep_row(speedup=1.08, margin=0.3)).lines()
    assert "no measurable gain" in lines[0] and "no measurable gain" in lines[2]
    assert any(line.startswith("no gain:") for line in lines)
    assert not any(
        line.startswith("no gain:") for line in result("speedup=1.5", sweep_row()).lines()
    )
    run, export = (
        next(line for line in lines if line.startswith(word)) for word in ("run", "export")
    )
    assert "model=tiny task=wmt" in run and "model=tiny task=wmt" in export
