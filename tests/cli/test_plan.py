from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from ulskip_cli.cli.plan import KEPT, plan_lines, strip
from ulskip_cli.core.model_metadata import WeightSizes
from ulskip_cli.core.schedule import ExitRule, Stage
from ulskip_cli.strategies.plan import Plan, StepSizes

PLAN = Plan(
    "unified", 6, (Stage(0, (0, 2, 5)),), target_speedup=2.0, target_kept=3, warnings=("careful",)
)
SIZES = StepSizes(WeightSizes(60, (90,) * 6), kv_per_layer=100)


def drawn(correction="", memory=None, **changes):
    return "\n".join(plan_lines(replace(PLAN, **changes), "tiny", correction, memory))


def test_a_plan_is_drawn_and_listed():
    text = drawn(sizes=SIZES)
    shown = ("█·█··█", "kept: 0, 2, 5", "600", "300", "1.82x", "careful")
    assert all(part in text for part in shown)


def test_corrections_are_shown_with_their_bytes():
    assert "full, 2 gaps, 8,448 bytes" in drawn("full", sizes=replace(SIZES, patch=4224))
    assert "full, 2 gaps, unknown" in drawn("full", sizes=replace(SIZES, patch=None))


def test_exits_are_shown_instead_of_a_schedule():
    rule = ExitRule(6, 3, "softmax_diff", None, 32, min_exit=2)
    text = drawn(strategy="early_exit", stages=(Stage(0, tuple(range(6))),), exits=rule)
    assert "3 of 6 layers" in text
    assert "2-5" in text and "of 3 layers: 2" in text and "softmax_diff" in text


@given(st.sets(st.integers(0, 40)))
def test_a_strip_shows_exactly_the_kept_layers(kept):
    assert {i for i, cell in enumerate(strip(41, sorted(kept))) if cell == KEPT} == kept
