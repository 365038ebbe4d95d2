from dataclasses import fields

import pytest
import yaml
from hydra.utils import get_class

from ulskip_cli.core.config import group_choices, options_of
from ulskip_cli.core.errors import UsageError

CONFIGS = group_choices("task")


@pytest.mark.parametrize("name", CONFIGS)
def test_every_option_has_a_help_text_and_the_default_of_its_config(name):
    config = yaml.safe_load(CONFIGS[name].read_text("utf-8"))
    task = get_class(config["_target_"])
    defaults = {one.name: getattr(task(templates=config["templates"]), one.name) for one in fields(task)}
    assert options_of({key: value for key, value in config.items() if key != "defaults"}) == defaults
    assert all(3 < len(one.metadata["help"]) <= 100 for one in fields(task))


@pytest.mark.parametrize("name", CONFIGS)
def test_bounds_are_checked_for_every_task(name):
    task = get_class(yaml.safe_load(CONFIGS[name].read_text("utf-8"))["_target_"])
    with pytest.raises(UsageError, match=r"task\.max_new_tokens"):
        task(max_new_tokens=0)
