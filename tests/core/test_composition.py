import re

import pytest

from ulskip_cli.core import config
from ulskip_cli.core.composition import RENAMED_KEYS
from ulskip_cli.core.errors import UsageError


@pytest.mark.parametrize(("old", "new"), RENAMED_KEYS.items())
@pytest.mark.parametrize("text", ["{}=1", "+{}=1", "~{}", "{}.part=1"])
def test_an_override_with_a_renamed_key_is_told_the_new_one(old, new, text):
    composed = config.compose_training if old.startswith("train.") else config.compose
    with pytest.raises(UsageError, match=re.escape(new)) as caught:
        composed([text.format(old)])
    assert old in str(caught.value)


def test_a_users_yaml_with_a_renamed_key_is_told_the_new_one(tmp_path):
    (tmp_path / "model").mkdir()
    preset = "name: mine\nsource: hf\npath: x\nskip_adapter: [y]\n"
    (tmp_path / "model" / "mine.yaml").write_text(preset)
    with pytest.raises(UsageError, match="correction=adapter"):
        config.compose(["model=mine"], tmp_path)


ESCAPED = r'task.prompt="{source}\nTranslate German to English:"'


def test_documented_overrides_have_line_breaks():
    documented = (config.config_dir().parent / "docs" / "your-own.md").read_text("utf-8")
    stop = r"""decoding.stop=["\n\n"]"""
    assert ESCAPED in documented and stop in documented
    chosen = config.compose([ESCAPED, stop])
    assert chosen.task.prompt == "{source}\nTranslate German to English:"
    assert chosen.decoding.stop == ("\n\n",)
    literal = [text.replace(r"\n", "\n") for text in (ESCAPED, stop)]
    assert chosen.identity == config.compose(literal).identity


@pytest.mark.parametrize("more", [[], ["+decoding.generate_kwargs={length_penalty: 2.0}"]])
def test_escapes_are_those_of_texts_for_the_model_alone(more):
    overrides = [ESCAPED, r"task.response='{reference}\t\\n'", r"task.dataset='C:\new'", *more]
    task = config.compose(overrides).task
    assert (task.prompt, task.response) == (
        "{source}\nTranslate German to English:",
        "{reference}\t\\n",
    )
    assert task.dataset == r"C:\new"
    added = config.compose(
        [r"+task.templates.mine={prompt: '{source}\n', response: '{reference}'}"]
    )
    assert added.task.templates["mine"] == {"prompt": "{source}\n", "response": "{reference}"}


def test_a_users_own_folder_adds_choices(tmp_path):
    (tmp_path / "strategy").mkdir()
    text = "_target_: ulskip_cli.strategies.custom.Custom\nname: mine\nlayers: [0, 2, 11]\n"
    (tmp_path / "strategy" / "mine.yaml").write_text(text)
    chosen = config.compose(["strategy=mine"], tmp_path)
    assert chosen.strategy.layers == (0, 2, 11)
    assert "mine" in config.group_choices("strategy", tmp_path)
    with pytest.raises(UsageError, match="nowhere"):
        config.compose([], tmp_path / "nowhere")


def test_a_broken_file_is_named_with_its_line(tmp_path):
    (tmp_path / "strategy").mkdir()
    (tmp_path / "strategy" / "mine.yaml").write_text("name: mine\nlayers: [0,\n")
    with pytest.raises(UsageError, match=r"mine\.yaml, line \d+"):
        config.compose(["strategy=mine"], tmp_path)


@pytest.mark.parametrize("name", ["top-skip", "top_skip"])
def test_hyphens_and_underscores_are_the_same(name):
    assert config.compose([f"strategy={name}"]).strategy.name == "top_skip"
    assert config.compose(["model=smollm2_135m"]).model.name == "smollm2-135m"


def test_configs_are_found_in_every_folder():
    folders = {path.parent.name for path in config.config_dir().rglob("*.yaml")}
    assert folders >= {"configs", *config.GROUPS, "train"}
