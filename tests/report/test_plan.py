from ulskip_cli.plan import Plan
from ulskip_cli.report.plan import plan_lines


def test_a_plan_is_drawn_and_listed():
    plan = Plan("unified", 6, (0, 2, 5), "all", 2.0, 2.0, None, 600, 300, ("careful",))
    text = "\n".join(plan_lines(plan, "tiny"))
    assert "█·█··█" in text
    assert "kept: 0, 2, 5" in text
    assert "unknown until" in text
    assert "600 in all layers, 300 kept" in text
    assert "warning: careful" in text
