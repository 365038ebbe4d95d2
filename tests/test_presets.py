import pytest
import yaml

from ulskip_cli.core.config import group_choices

MAX_CHARACTERS = 92
GROUPS = ("model", "task", "strategy", "correction", "decoding", "engine", "experiment")


@pytest.mark.parametrize("group", GROUPS)
def test_every_preset_has_a_short_description(group):
    texts = {
        name: yaml.safe_load(path.read_text("utf-8")).get("description", "")
        for name, path in group_choices(group).items()
    }
    assert not {name: text for name, text in texts.items() if not 15 <= len(text) <= MAX_CHARACTERS}
