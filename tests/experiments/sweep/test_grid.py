import re
import shutil

import pytest

from ulskip_cli.core.config import use_config_dir
from ulskip_cli.core.errors import UsageError
from ulskip_cli.experiments.preflight import resolve
from ulskip_cli.experiments.runner import Session, run_point
from ulskip_cli.experiments.sweep.grid import points


def grid(*overrides):
    return [(config.strategy.name, config.ratio) for config in points(overrides)]


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
    swept = points(["strategy=full,unified", "strategy.spacing=even,reference"])
    strategies = [config.strategy for config in swept]
    assert [strategy.name for strategy in strategies] == ["full", "unified", "unified"]
    assert [strategy.spacing for strategy in strategies[1:]] == ["even", "reference"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["strategy=full,unified", "strategy.spacnig=even"], r"strategy\.spacnig"),
        (["strategy=unified", "strategy.batch=na"], r"strategy\.batch"),
        (["ratio=glob(*)"], "ratio"),
        (["strategy=glob(zzz*)"], "zzz"),
        (["ratio=range(5,2)"], re.escape("ratio=range(5,2)")),
        (["ratio=interval(2,5)"], re.escape("ratio=interval(2,5)")),
        (["name=a,b"], "results/a, results/b"),
        (["ratio=2,3", "alternatives.draft_tokens=[x]"], r"alternatives\.draft_tokens.*x"),
    ],
    ids=str,
)
def test_bad_points_are_refused_before_anything_runs(overrides, message):
    with pytest.raises(UsageError, match=message):
        points(overrides)


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ([], "reproduce"),
        (["name=x"], "x"),
        (["launcher=local", "launcher.workers=2", "tracker=none"], "reproduce"),
    ],
)
def test_without_keys_of_points_the_grid_is_the_papers(overrides, name):
    grid = points(overrides)
    # batch sizes, then full and three ratios of five strategies
    assert len(grid) == 3 * (1 + 3 * 5) and {config.name for config in grid} == {name}


def test_a_preset_stands_where_no_experiment_is_named():
    bench = points(["model=random"], preset="bench")
    assert {config.engine.name for config in bench} == {"auto", "transformers"}
    paper = points(["experiment=paper_throughput"], preset="bench")
    assert len(paper) == 3 * 2 * 2 and {config.model.path for config in paper} == {"bloom-7b1"}


def test_an_experiment_has_its_own_grid(tmp_path):
    (tmp_path / "experiment").mkdir()
    sweeps = {"mine": "{ratio: '2,3', batch_size: '1,4'}", "wrong": "{ratoi: 2}"}
    for name, sweep in sweeps.items():
        preset = f"name: {name}\nsweep: {sweep}\n"
        (tmp_path / "experiment" / f"{name}.yaml").write_text(preset)
    use_config_dir(tmp_path)
    pairs = [(config.ratio, config.batch_size) for config in points(["experiment=mine"])]
    assert pairs == [(2, 1), (2, 4), (3, 1), (3, 4)]
    with pytest.raises(UsageError, match="ratoi"):
        points(["experiment=wrong"])


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["experiment=reproduce,paper"], "one experiment.*experiment=reproduce,paper"),
        (["ratio=2", "name=a,b"], "results/a, results/b.*name="),
    ],
)
def test_a_sweep_has_one_experiment_and_one_folder(overrides, words):
    with pytest.raises(UsageError, match=words):
        points(overrides)


@pytest.fixture(scope="module")
def sibling(tmp_path_factory):
    """Export a checkpoint with every second layer of the bundled model."""
    from ulskip_cli.cli.app import invoke

    folder = tmp_path_factory.mktemp("sibling") / "half"
    export = ["export", "model=tiny", "ratio=2", "prompt_layers=kept", "--no-check"]
    assert invoke([*export, "--to", str(folder)]) == 0
    return folder


def test_alternatives_come_behind_the_points_whose_ids_they_do_not_change(sibling, capsys):
    overrides = ["model=tiny", "engine=torch,transformers", "strategy=full,unified"]
    overrides.append("baseline_engine=torch")
    wanted = [f"alternatives.models=[{sibling}]", "alternatives.draft_tokens=[4,auto]"]
    plain, grid = points(overrides), points([*overrides, *wanted])
    assert [config.identity() for config in grid[:4]] == [config.identity() for config in plain]
    added = [(config.decoding.draft_tokens, config.engine.name) for config in grid[4:]]
    assert added == [(0, "torch"), (4, "torch"), ("auto", "torch"), (0, "transformers")]
    assert [bool(config.baseline_model) for config in grid[4:]] == [True, False, False, True]
    note = capsys.readouterr().err
    assert "left out: 2" in note and "transformers" in note and note.count("\n") == 1
    compared = [config for config in grid if config.strategy.name == "unified"] + grid[4:5]
    baselines = {config.batch_size: resolve(config).baseline.run_id for config in compared}
    assert len(baselines) == len(set(baselines.values())) == 2  # drafts have batch size 1


def test_a_smaller_model_is_compared_with_the_row_of_the_full_model(sibling, tmp_path, quick):
    overrides = ["model=tiny", "strategy=unified", "ratio=2,3", "model.dtype=float32"]
    overrides.append(f"alternatives.models=[{sibling}]")
    *_, config = points([*overrides, *quick, f"results_dir={tmp_path}"])
    assert (config.model.dtype, config.baseline_model.name) == ("float32", "tiny")
    full, row = (record.to_row() for record in run_point(resolve(config), Session()))
    assert (full["model"], row["model"]) == ("tiny", str(sibling))
    assert row["config"]["baseline_model"]["name"] == "tiny"
    assert (row["num_layers"], full["num_layers"]) == (6, 12) and row["baseline_id"] == full["id"]
    assert row["vs_baseline"]["bleu"]["full"] == full["bleu"] and "predicted_speedup" not in row


@pytest.mark.parametrize("name", ["tinny", "random", "no/such/folder", "no tokenizer"])
def test_models_that_cannot_be_used_end_the_command(ulskip, sibling, tmp_path, name):
    if name == "no tokenizer":
        name = tmp_path
        for file in ("config.json", "model.safetensors"):
            shutil.copy(sibling / file, tmp_path / file)
    sweep = ["sweep", "model=tiny", "ratio=2,3", f"alternatives.models=['{name}']", "--dry-run"]
    code, _, err = ulskip(*sweep)
    assert code == 2 and len(err.strip().splitlines()) == 1 and "alternatives.models" in err


def test_a_bench_refuses_other_models(ulskip, sibling):
    code, _, err = ulskip("bench", "model=tiny", f"alternatives.models=[{sibling}]")
    assert code == 2 and "alternatives.models" in err
