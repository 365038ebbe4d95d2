import pytest

from ulskip_cli.config import compose
from ulskip_cli.cost import WeightBytes
from ulskip_cli.errors import UsageError
from ulskip_cli.models.facts import ModelFacts
from ulskip_cli.plan import make_plan

FACTS = ModelFacts(num_layers=12, kv_bytes_per_layer=100, weights=WeightBytes(300, (100,) * 12))


def test_a_plan_states_all_three_speedups():
    plan = make_plan(compose(["ratio=2"]), FACTS)
    assert (plan.target_speedup, plan.layer_ratio, plan.predicted_speedup) == (2.0, 2.0, pytest.approx(1500 / 900))
    assert (plan.kv_bytes_per_token, plan.kept_kv_bytes_per_token) == (1200, 600)


def test_cost_keeps_fewer_layers_where_the_head_is_heavy():
    plan = make_plan(compose(["ratio=2", "ratio_basis=cost"]), FACTS)
    assert len(plan.kept_layers) == 4
    assert plan.predicted_speedup >= 2


def test_full_ignores_the_ratio():
    plan = make_plan(compose(["strategy=full", "ratio=99", "ratio_basis=cost", "prompt_layers=kept"]), FACTS)
    assert plan.keeps_all
    assert (plan.target_speedup, plan.prompt_layers) == (1.0, "all")


def test_custom_has_no_target():
    assert make_plan(compose(["strategy=custom", "strategy.layers=[0,5,11]"]), FACTS).target_speedup is None


def test_unbalanced_schedules_are_warned_about():
    facts = ModelFacts(32, None, None)
    assert "11 neighbouring layers" in make_plan(compose(["strategy.spacing=reference", "ratio=1.5"]), facts).warnings[0]
    assert make_plan(compose(["ratio=1.5"]), facts).warnings == ()
    assert make_plan(compose(["strategy=top_skip"]), facts).warnings == ()


def test_unknown_stays_unknown():
    plan = make_plan(compose(["ratio_basis=cost"]), ModelFacts(12, None, None))
    assert (plan.predicted_speedup, plan.kv_bytes_per_token) == (None, None)
    assert "unknown" in plan.warnings[0]


def test_out_of_reach_names_the_highest_ratio():
    with pytest.raises(UsageError, match="highest reachable ratio is 6"):
        make_plan(compose(["ratio=6.5"]), FACTS)
