"""Engines, commands and needs: what is not declared is refused before weights load."""

from unittest.mock import Mock

import pytest
from needs import RECIPES, overrides_for
from needs import folders as folders

from ulskip_cli import api
from ulskip_cli.core import capabilities
from ulskip_cli.core.capabilities import ALL, COMMANDS, TOGETHER, Need
from ulskip_cli.core.config import compose
from ulskip_cli.core.config_schema import Config
from ulskip_cli.core.engines import engine_class, engine_names
from ulskip_cli.core.errors import NotApplicable, UsageError
from ulskip_cli.core.model_metadata import ModelFolder
from ulskip_cli.strategies.plan import make_plan

pytestmark = pytest.mark.usefixtures("installed")
SUPPORTS = {name: engine_class(name).supports for name in engine_names()}
SUPPORTS["auto"] = SUPPORTS["torch"] | SUPPORTS["transformers"]
# No run in one engine has the first two, and the third comes with early exit alone.
NOT_OF_RUNS = {Need.OTHER_ENGINE, Need.NO_TOKENIZER, Need.SINGLE_EXITS}


class LoadingError(Exception):
    """Weights would be loaded now."""


def planned(overrides, command, checked_for=None):
    config = compose(overrides, command)
    return make_plan(config, ModelFolder(config.model).metadata, checked_for or command)


@pytest.mark.parametrize("need", Need)
def test_a_recipe_has_its_need(need, folders):
    assert need in planned(overrides_for(need, **folders), "run", "plan").needs


@pytest.mark.parametrize("need", [need for need in Need if need not in NOT_OF_RUNS])
@pytest.mark.parametrize("engine", SUPPORTS)
def test_an_engine_runs_what_it_supports_and_refuses_the_rest_before_loading(
    engine, need, folders, tmp_path, monkeypatch
):
    monkeypatch.setattr("ulskip_cli.experiments.runner.load", Mock(side_effect=LoadingError))
    supports = SUPPORTS[engine]
    overrides = overrides_for(need, supports=supports, **folders)
    expected = LoadingError if need in supports else NotApplicable
    with pytest.raises(expected) as caught:
        api.evaluate(*overrides, f"engine={engine}", f"results_dir={tmp_path}")
    if expected is NotApplicable:
        told = (f"engine={engine}", need.text, need.remedy, "engine=auto")
        assert all(text in str(caught.value) for text in told)
        assert need in SUPPORTS["auto"]


@pytest.mark.parametrize(
    ("command", "need"),
    [
        (command, need)
        for command, supported in COMMANDS.items()
        for need in Need
        if need not in supported and command.split()[0] not in ("tune", "train")
    ],
)
def test_what_a_command_does_not_support_is_refused_by_its_plan(command, need):
    name = command.split()[0]
    reads_all = all(name in Config.readers(text.partition("=")[0]) for text in RECIPES[need])
    with pytest.raises(NotApplicable if reads_all else UsageError, match=f"`ulskip {name}"):
        planned(overrides_for(need, command=name), command)


@pytest.mark.parametrize("one", Need)
def test_needs_that_exclude_each_other_are_refused_and_no_others(one):
    for other in Need:
        if other in TOGETHER.get(one, ALL) and one in TOGETHER.get(other, ALL):
            capabilities.check({one, other}, "plan")
            continue
        with pytest.raises(NotApplicable) as caught:
            capabilities.check({one, other}, "plan")
        assert one.remedy in str(caught.value) and other.remedy in str(caught.value)
