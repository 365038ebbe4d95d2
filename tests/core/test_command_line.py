import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ulskip_cli.core.command_line import command_line, overrides_of
from ulskip_cli.core.config import compose, compose_training, use_config_dir

CASES = [
    [],
    ["task=cnn_dm"],
    ["task=cnn_dm", "model=tiny", "task.max_article_words=9"],
    ["model.path='/some/where else'"],
    ["model=random", "model.path=llama-12x256"],
    ["strategy=custom", "strategy.layers=[0,5]"],
    ["strategy=custom", "strategy.skip=[3,4]"],
    ["engine=llama_cpp_q8_0"],
    ["decoding=beam", "max_new_tokens=9", "decoding.stop=['a b','x']"],
    ["experiment=paper", "task.dataset=sample", "max_new_tokens=10"],
    ["decoding=prompt_lookup", "batch_size=1", "decoding.draft_tokens=3"],
    ["correction=patch", "calibration.task={source_file: a.de, reference_file: b}"],
    ["speed.enabled=false", "baseline=false", "prompt_layers=kept"],
    ["task.templates.plain.prompt='{source}: \\n'"],
]


@pytest.mark.parametrize("overrides", CASES, ids=str)
def test_the_overrides_of_a_configuration_compose_it_again(overrides):
    config = compose(overrides)
    again = overrides_of(config, "run")
    assert compose(again) == config
    words = shlex.split(command_line(config, "run", "--json"))
    assert words == ["ulskip", "run", *again, "--json"]


@given(
    prompt=st.text(st.characters(exclude_categories=["C"]), max_size=12),
    temperature=st.floats(0.1, 6),
    seed=st.integers(0, 2**32 - 1),
    layers=st.sets(st.integers(0, 11), min_size=1),
)
def test_any_value_is_written_so_that_it_is_read_again(prompt, temperature, seed, layers):
    config = compose(["strategy=custom", "strategy.layers=[0]", "batch_size=1"])
    decoding = config.decoding.replace(do_sample=True, temperature=temperature)
    task = config.task.replace(prompt=f"{prompt}{{source}}", subset=prompt)
    strategy = config.strategy.replace(layers=tuple(sorted(layers)))
    config = config.replace(seed=seed, decoding=decoding, task=task, strategy=strategy)
    assert compose(overrides_of(config, "run")) == config


def test_keys_that_a_command_does_not_read_are_left_out():
    config = compose(["ratio=3", "speed.precision=0.1", "limit=5", "strategy=top_skip"])
    read = {"model=tiny", "strategy=top_skip", "ratio=3"}
    assert set(overrides_of(config, "bench")) == {*read, "speed.precision=0.1"}
    assert set(overrides_of(config, "plan")) == {*read, "task=wmt"}


def test_a_choice_of_a_users_folder_is_named(tmp_path):
    (tmp_path / "strategy").mkdir()
    text = "_target_: ulskip_cli.strategies.static.Custom\nname: mine\nlayers: [0, 2, 11]\n"
    (tmp_path / "strategy" / "mine.yaml").write_text(text)
    use_config_dir(tmp_path)
    again = overrides_of(compose(["strategy=mine", "limit=5"]), "run")
    assert again == ["model=tiny", "task=wmt", "strategy=mine", "limit=5"]


def test_a_training_is_a_command_line_too():
    config = compose_training(["train=adapter", "train.ratios=[3]", "output=x"])
    again = overrides_of(config, "train")
    assert compose_training(again) == config and "train=adapter" in again
