from dataclasses import fields

import pytest
import yaml
from hydra.utils import get_class

from ulskip_cli.core.config import group_choices, options_of

CONFIGS = group_choices("strategy")


@pytest.mark.parametrize("name", CONFIGS)
def test_every_option_has_a_help_text_and_the_default_of_its_config(name):
    config = yaml.safe_load(CONFIGS[name].read_text("utf-8"))
    strategy = get_class(config["_target_"])
    assert options_of(config) == {one.name: getattr(strategy(), one.name) for one in fields(strategy)}
    assert all(3 < len(one.metadata["help"]) <= 100 for one in fields(strategy))
