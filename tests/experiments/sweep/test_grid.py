import re

import pytest

from ulskip_cli.core.errors import UsageError
from ulskip_cli.experiments.sweep.grid import points


def grid(*overrides):
    return [(config.strategy.name, config.ratio) for config in points(overrides)]


def test_a_grid_is_the_product_in_order():
    assert grid("strategy=unified,top_skip", "ratio=2,3") == [
        ("unified", 2),
        ("unified", 3),
        ("top_skip", 2),
        ("top_skip", 3),
    ]


def test_full_is_one_point_whatever_the_ratios():
    assert grid("strategy=full,unified", "ratio=2,3") == [
        ("full", 2),
        ("unified", 2),
        ("unified", 3),
    ]


def test_a_key_of_one_strategy_is_for_that_strategy():
    found = points(["strategy=full,unified,top_skip", "strategy.spacing=even,reference"])
    assert [(one.strategy.name, getattr(one.strategy, "spacing", None)) for one in found] == [
        ("full", None),
        ("unified", "even"),
        ("unified", "reference"),
        ("top_skip", None),
    ]
    with pytest.raises(UsageError, match=r"strategy\.spacnig"):
        points(["strategy=full,unified", "strategy.spacnig=even"])
    with pytest.raises(UsageError, match="ratoi"):
        points(["strategy=full,unified", "ratoi=2"])


def test_ranges_and_globs():
    assert grid("ratio=range(2,5)") == [("unified", 2), ("unified", 3), ("unified", 4)]
    assert grid("strategy=glob(*_skip)") == [("bottom_skip", 2), ("top_skip", 2)]
    assert grid("strategy=choice(unified,full)") == [("unified", 2), ("full", 2)]


@pytest.mark.slow
def test_without_a_sweep_the_default_grid_is_run():
    points_of_default = points([])
    assert {config.name for config in points_of_default} == {"reproduce"}
    assert len(points_of_default) == 3 * (
        1 + 3 * 5
    )  # batch sizes, then full and three ratios of five strategies
    assert {
        getattr(one.strategy, "batch", None)
        for one in points_of_default
        if one.strategy.name == "early_exit"
    } == {"na"}
    changed = points(["task.pair=en-de"])
    assert {(config.task.pair, config.name) for config in changed} == {("en-de", "default")}


def test_a_presets_key_need_not_fit_the_strategy_that_is_chosen_beside_it():
    assert len(points(["strategy=unified", "ratio=2", "batch_size=1"])) == 1
    assert {config.strategy.batch for config in points(["strategy=early_exit"])} == {"na"}
    with pytest.raises(UsageError, match=r"strategy\.batch"):
        points(["strategy=unified", "strategy.batch=na"])


def test_what_is_given_wins_over_the_preset():
    assert {config.ratio for config in points(["experiment=reproduce", "ratio=4"])} == {4}


def test_a_preset_stands_where_no_experiment_is_named():
    bench = points(["model=random"], preset="bench")
    assert [(one.batch_size, one.engine.name, one.ratio) for one in bench[:3]] == [
        (1, "auto", 2.0),
        (1, "auto", 3.0),
        (1, "transformers", 2.0),
    ]
    assert {(one.name, one.model.name) for one in bench} == {("bench", "random")}
    assert len(points(["ratio=2,3,4", "batch_size=1", "name=mine"], preset="bench")) == 2 * 3
    assert {one.name for one in points(["ratio=2,3", "name=mine"], preset="bench")} == {"mine"}
    assert {one.name for one in points(["experiment=reproduce"], preset="bench")} == {"reproduce"}


def test_the_papers_throughput_and_a_trial_of_it():
    paper = points(["experiment=paper_throughput"], preset="bench")
    assert [(one.batch_size, one.decoding.compile, one.ratio) for one in paper[:3]] == [
        (1, "off", 2.0),
        (1, "off", 5.0),
        (1, "on", 2.0),
    ]
    assert len(paper) == 3 * 2 * 2
    assert {(one.model.source, one.model.path, one.model.dtype) for one in paper} == {
        ("random", "bloom-7b1", "bfloat16")
    }
    assert {one.strategy.spacing for one in paper} == {"reference"}
    trial = points(
        ["experiment=paper_throughput", "model.path=llama-12x256", "model.dtype=float32", "ratio=2"]
    )
    assert {(one.model.source, one.model.path, one.model.dtype) for one in trial} == {
        ("random", "llama-12x256", "float32")
    }
    assert len(trial) == 3 * 2
    assert {one.model.name for one in points(["experiment=paper_throughput", "model=tiny"])} == {
        "tiny"
    }


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["strategy=unifed,full"], "'unifed'.*'unified'"),
        (["ratio=2,x"], "ratio.*x"),
        (["ratio=glob(*)"], "glob.*ratio"),
        (["strategy=glob(zzz*)"], "zzz"),
    ],
)
def test_bad_points_are_refused_before_anything_runs(overrides, message):
    with pytest.raises(UsageError, match=message):
        points(overrides)


def test_a_key_of_a_strategy_that_is_not_the_default_one():
    found = points(["strategy=unified,early_exit", "ratio=2", "strategy.batch=na"])
    assert [getattr(one.strategy, "batch", None) for one in found] == [None, "na"]


@pytest.fixture
def presets(tmp_path):
    folder = tmp_path / "experiment"
    folder.mkdir()
    for name, grid in (
        ("first", "{ratio: '2,3'}"),
        ("second", "{batch_size: '1,4'}"),
        ("misspelt", "{ratoi: '2,3'}"),
    ):
        (folder / f"{name}.yaml").write_text(f"# @package _global_\nname: {name}\nsweep: {grid}\n")
    return tmp_path


def test_several_experiments_each_with_its_grid_in_one_folder(presets):
    found = points(["experiment=first,second", "name=both", "batch_size=8"], presets)
    assert [(one.ratio, one.batch_size) for one in found] == [(2, 8), (3, 8)]
    found = points(["experiment=first,second", "name=both"], presets)
    assert [(one.ratio, one.batch_size) for one in found] == [(2, 8), (3, 8), (2, 1), (2, 4)]
    with pytest.raises(UsageError, match=r"results/first, results/second.*name="):
        points(["experiment=first,second"], presets)
    with pytest.raises(UsageError, match="results/a, results/b"):
        points(["name=a,b"])


def test_a_misspelt_key_of_a_preset_is_said(presets):
    with pytest.raises(UsageError, match="ratoi"):
        points(["experiment=misspelt"], presets)


@pytest.mark.parametrize("ratio", ["range(5,2)", "interval(2,5)"])
def test_what_has_no_values_is_no_sweep(ratio):
    with pytest.raises(UsageError, match=re.escape(f"ratio={ratio}")):
        points([f"ratio={ratio}"])
