import pytest

from ulskip_cli.errors import UsageError
from ulskip_cli.sweep import points


def grid(*overrides):
    return [(config.strategy["name"], config.ratio) for config in points(overrides)]


def test_a_grid_is_the_product_in_order():
    assert grid("strategy=unified,top_skip", "ratio=2,3") == [("unified", 2), ("unified", 3), ("top_skip", 2), ("top_skip", 3)]


def test_full_is_one_point_whatever_the_ratios():
    assert grid("strategy=full,unified", "ratio=2,3") == [("full", 2), ("unified", 2), ("unified", 3)]


def test_ranges_and_globs():
    assert grid("ratio=range(2,5)") == [("unified", 2), ("unified", 3), ("unified", 4)]
    assert grid("strategy=glob(*_skip)") == [("bottom_skip", 2), ("top_skip", 2)]
    assert grid("strategy=choice(unified,full)") == [("unified", 2), ("full", 2)]


def test_without_a_sweep_the_default_grid_is_run():
    points_of_default = points([])
    assert {config.name for config in points_of_default} == {"reproduce"}
    assert len(points_of_default) == 3 * (1 + 2 * 3)  # batch sizes, then full and two ratios of three strategies
    changed = points(["task.pair=en-de"])
    assert {(config.task["pair"], config.name) for config in changed} == {("en-de", "default")}


def test_what_is_given_wins_over_the_preset():
    assert {config.ratio for config in points(["experiment=reproduce", "ratio=4"])} == {4}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["strategy=unifed,full"], "did you mean 'unified'"),
        (["ratio=2,x"], "ratio: Value 'x'"),
        (["ratio=glob(*)"], "glob chooses among"),
        (["strategy=glob(zzz*)"], "matches none of"),
    ],
)
def test_bad_points_are_refused_before_anything_runs(overrides, message):
    with pytest.raises(UsageError, match=message):
        points(overrides)
