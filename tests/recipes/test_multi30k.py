import pytest
from recipe import load_recipe

from ulskip_cli.config import compose_training
from ulskip_cli.training.run import schedules

reproduce = load_recipe("multi30k/reproduce.py")
EVERY = [*reproduce.contest(1), *reproduce.options(), *reproduce.contest(2), *reproduce.contest(3)]


def test_every_checkpoint_has_a_name_of_its_own():
    names = [one.name for one in EVERY]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("one", EVERY, ids=lambda one: one.name)
def test_every_training_composes_and_keeps_what_its_name_says(one):
    ratios = ",".join(map(str, one.ratios))
    strategy = [f"strategy={one.strategy}", *one.strategy_options]
    config = compose_training([*reproduce.FINE_TUNE, *strategy, f"train.ratios=[{ratios}]", f"seed={one.seed}", *one.options])
    assert {ratio: len(kept) for ratio, kept in schedules(config, 12).items()} == {ratio: 12 // ratio for ratio in one.ratios}


def test_all_get_the_same_budget_in_the_contest():
    assert {one.options for seed in (1, 2, 3) for one in reproduce.contest(seed)} == {()}
    assert {one.strategy for one in reproduce.contest(1)} == {"full", "unified", "top_skip", "bottom_skip"}
