from itertools import pairwise

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ulskip_cli.config import compose
from ulskip_cli.errors import UsageError
from ulskip_cli.export import plans


@given(st.sets(st.integers(0, 40), min_size=1))
def test_runs_cover_the_kept_layers(kept):
    found = plans.runs(sorted(kept))
    assert [i for begin, end in found for i in range(begin, end)] == sorted(kept)
    assert all(end < begin for (_, end), (begin, _) in pairwise(found))


def test_a_merge_recipe_names_slices():
    config = compose(["strategy=custom", "strategy.layers=[0,1,5,11]"])
    recipe = yaml.safe_load(plans.mergekit(config, plans.plan_of(config), []))
    assert [one["sources"][0]["layer_range"] for one in recipe["slices"]] == [[0, 2], [5, 6], [11, 12]]
    assert (recipe["merge_method"], recipe["dtype"]) == ("passthrough", "float32")


def test_a_schedule_says_how_it_was_made():
    config = compose(["ratio=3"])
    made = plans.schedule_of(config, plans.plan_of(config), ["ratio=3"])
    assert (made.kept_layers, made.num_layers, made.target_ratio) == ((0, 4, 7, 11), 12, 3.0)
    assert (made.strategy, made.strategy_options, made.model) == ("unified", {"spacing": "even"}, "tiny")
    assert made.made_by.endswith("ulskip export ratio=3")


def test_what_only_a_run_decides_is_refused():
    with pytest.raises(UsageError, match="decided by a run's clock"):
        plans.plan_of(compose(["ratio_basis=latency"]))


def test_what_every_token_decides_is_refused():
    with pytest.raises(UsageError, match="decides at every token"):
        plans.plan_of(compose(["strategy=early_exit", "strategy.threshold=0.5"]))


@pytest.mark.parametrize("strategy", ["block_influence", "search", "skip_decode"])
def test_what_held_out_examples_decide_is_refused(strategy):
    with pytest.raises(UsageError, match="on held-out examples"):
        plans.plan_of(compose([f"strategy={strategy}"]))


def test_stages_are_a_schedule_and_no_checkpoint():
    config = compose(["strategy=skip_decode", "strategy.horizon=8"])
    plan = plans.plan_of(config)
    made = plans.schedule_of(config, plan, [])
    assert made.later_stages
    assert made.strategy_options["horizon"] == 8
    with pytest.raises(UsageError, match="fewer layers at later steps"):
        plans.one_stage(plan)
