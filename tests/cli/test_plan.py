from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from ulskip_cli.cli.plan import KEPT, plan_lines, ranges, ruler, strip
from ulskip_cli.core.exit_rule import ExitRule
from ulskip_cli.strategies.memory import MemoryPlan
from ulskip_cli.strategies.plan import Plan


def test_a_plan_is_drawn_and_listed():
    plan = Plan("unified", 6, (0, 2, 5), "all", 2.0, 2.0, None, 600, 300, ("careful",))
    text = "\n".join(plan_lines(plan, "tiny"))
    assert "█·█··█" in text
    assert "kept: 0, 2, 5" in text
    assert "600" in text and "300" in text
    assert "careful" in text


def test_a_unit_is_named():
    plan = Plan("unified", 6, (0, 2, 5), "all", 2.0, 2.0, None, 600, 300, (), unit="attention")
    text = "\n".join(plan_lines(plan, "tiny"))
    assert "3 of 6 attentions" in text and "every MLP runs" in text


def test_a_memory_budget_is_shown_beside_full():
    memory = MemoryPlan(900, 450)
    plan = Plan("unified", 6, (0, 2, 5), "all", 2.0, 2.0, None, 600, 300, (), memory)
    text = "\n".join(plan_lines(plan, "tiny"))
    assert "900; full 450" in text


def test_patches_are_shown_with_their_bytes():
    plan = Plan("unified", 6, (0, 2, 5), "all", 2.0, 2.0, None, 600, 300, ())
    assert "patches" not in "\n".join(plan_lines(plan, "tiny"))
    (line,) = [
        line for line in plan_lines(replace(plan, options={"patch": "full"}, patch_bytes=8448), "m") if "patches" in line
    ]
    assert "full, 2 gaps, 8,448 bytes" in line
    (line,) = [
        line for line in plan_lines(replace(plan, options={"patch": "full"}, patch_bytes=None), "m") if "patches" in line
    ]
    assert "unknown" in line
    assert "skip adapter, 2 gaps, 256 bytes" in "\n".join(plan_lines(replace(plan, patch_bytes=256), "tiny"))


def test_exits_are_shown_instead_of_a_schedule():
    rule = ExitRule(6, 3, "softmax_diff", None, 32, min_exit=2)
    plan = Plan("early_exit", 6, (0, 1, 2, 3, 4, 5), "all", 2.0, 2.0, None, 600, 600, (), exits=rule)
    text = "\n".join(plan_lines(plan, "tiny"))
    assert "3 of 6 layers" in text
    assert "2-5" in text and "of 3 layers: 2" in text and "softmax_diff" in text


@given(st.sets(st.integers(0, 40)))
def test_a_strip_shows_exactly_the_kept_layers(kept):
    assert {i for i, cell in enumerate(strip(41, sorted(kept))) if cell == KEPT} == kept


@given(st.integers(1, 120))
def test_ruler_marks_are_below_their_layers(num_layers):
    text = ruler(num_layers, every=5)
    for i in range(0, num_layers, 5):
        assert text[i:].startswith(str(i))


def test_ranges_join_neighbours():
    assert ranges((0, 1, 4)) == "0, 1, 4"
    assert ranges(()) == ""
