import pytest

from ulskip_cli.core.config import use_config_dir
from ulskip_cli.core.errors import UsageError
from ulskip_cli.experiments.grid import grid_configs


def grid(*overrides):
    return [(config.strategy.name, config.ratio) for config in grid_configs(overrides)]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ["strategy=unified,top_skip", "ratio=2,3"],
            [("unified", 2), ("unified", 3), ("top_skip", 2), ("top_skip", 3)],
        ),
        (["strategy=full,unified", "ratio=2,3"], [("full", 2), ("unified", 2), ("unified", 3)]),
        (["ratio=3"], [("unified", 3)]),
        (["limit=4", "name=x"], [("unified", 2)]),
        (["strategy=top_skip"], [("top_skip", 2)]),
        (["ratio=range(2,5)"], [("unified", 2), ("unified", 3), ("unified", 4)]),
        (["strategy=glob(*_skip)"], [("bottom_skip", 2), ("top_skip", 2)]),
        (["experiment=reproduce", "strategy=unified", "ratio=4", "batch_size=1"], [("unified", 4)]),
    ],
    ids=str,
)
def test_a_grid_is_the_product_in_order_without_duplicates(overrides, expected):
    assert grid(*overrides) == expected


def test_a_key_of_one_strategy_is_for_that_strategy():
    swept = grid_configs(["strategy=full,unified", "strategy.spacing=even,reference"])
    strategies = [config.strategy for config in swept]
    assert [strategy.name for strategy in strategies] == ["full", "unified", "unified"]
    assert [strategy.spacing for strategy in strategies[1:]] == ["even", "reference"]


@pytest.mark.parametrize("decoding", ["greedy,sample", "sample,greedy"])
def test_a_key_of_sampling_is_for_the_decodings_that_sample(decoding):
    swept = grid_configs([f"decoding={decoding}", "decoding.temperature=0.5,0.9"])
    found = {config.decoding.name: [] for config in swept}
    for config in swept:
        found[config.decoding.name].append(config.decoding.temperature)
    assert found == {"greedy": [1.0], "sample": [0.5, 0.9]}
    with pytest.raises(UsageError, match="requires sampling"):
        grid_configs(["decoding=greedy,beam", "decoding.temperature=0.5"])


@pytest.mark.parametrize(
    ("overrides", "name"),
    [([], "reproduce"), (["name=x"], "x"), (["launcher=local", "launcher.workers=2"], "reproduce")],
)
def test_without_keys_of_points_the_grid_is_the_papers(overrides, name):
    grid = grid_configs(overrides)
    # batch sizes, then full and three ratios of five strategies
    assert len(grid) == 3 * (1 + 3 * 5) and {config.name for config in grid} == {name}


def test_a_preset_stands_where_no_experiment_is_named():
    bench = grid_configs(["model=random"], default_experiment="bench")
    assert {config.engine.name for config in bench} == {"auto", "transformers"}
    paper = grid_configs(["experiment=paper_throughput"], default_experiment="bench")
    assert len(paper) == 3 * 2 and {config.model.path for config in paper} == {"bloom-7b1"}


def test_an_experiment_has_its_own_grid(tmp_path):
    (tmp_path / "experiment").mkdir()
    sweeps = {"mine": "{ratio: '2,3', batch_size: '1,4'}", "wrong": "{ratoi: 2}"}
    for name, sweep in sweeps.items():
        preset = f"# @package _global_\nname: {name}\nsweep: {sweep}\n"
        (tmp_path / "experiment" / f"{name}.yaml").write_text(preset)
    use_config_dir(tmp_path)
    pairs = [(config.ratio, config.batch_size) for config in grid_configs(["experiment=mine"])]
    assert pairs == [(2, 1), (2, 4), (3, 1), (3, 4)]
    with pytest.raises(UsageError, match="ratoi"):
        grid_configs(["experiment=wrong"])
