import pytest
import yaml

from ulskip_cli.core.config import group_choices

MAX_CHARACTERS = 90
GROUPS = ("model", "task", "strategy", "correction", "decoding", "engine")


@pytest.mark.parametrize("group", GROUPS)
def test_every_preset_has_a_short_description(group):
    texts = {
        name: yaml.safe_load(path.read_text("utf-8")).get("description", "")
        for name, path in group_choices(group).items()
    }
    assert not {name: text for name, text in texts.items() if not 15 <= len(text) <= MAX_CHARACTERS}


@pytest.mark.parametrize("name", group_choices("experiment"))
def test_the_first_comment_of_an_experiment_describes_it(name):
    package, described, *_ = group_choices("experiment")[name].read_text("utf-8").splitlines()
    assert package == "# @package _global_"
    assert described.startswith("# ")
    assert described.endswith(".")
    assert len(described) <= MAX_CHARACTERS + 2
