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
from ulskip_cli.strategies import plan

pytestmark = pytest.mark.usefixtures("installed")
SUPPORTS = {name: engine_class(name).supports for name in engine_names()}
SUPPORTS["auto"] = SUPPORTS["torch"] | SUPPORTS["transformers"]
OF_PLANS = {Need.FULL_PROMPT}  # which the layers of a model decide
OF_ENGINES = {Need.OTHER_ENGINE}  # no run in one engine has this need


class LoadingError(Exception):
    """Weights would be loaded now."""


@pytest.mark.parametrize("need", [need for need in Need if need not in OF_ENGINES])
def test_a_recipe_has_its_need(need, folders):
    config = compose(overrides_for(need, **folders))
    assert need in plan.needs(config, plan.make_plan(config, ModelFolder(config.model).metadata))


@pytest.mark.parametrize("need", [need for need in Need if need not in OF_ENGINES])
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
        if need not in supported | OF_PLANS | {Need.ADAPTER} and command not in ("tune", "train")
    ],
)
def test_what_a_command_does_not_support_is_refused_in_compose(command, need):
    name = command.split()[0]
    reads_all = all(name in Config.readers(text.partition("=")[0]) for text in RECIPES[need])
    with pytest.raises(NotApplicable if reads_all else UsageError, match=f"`ulskip {name}"):
        compose(overrides_for(need, command=name), command=command)


@pytest.mark.parametrize("one", Need)
def test_needs_that_exclude_each_other_are_refused_and_no_others(one):
    for other in Need:
        if other in TOGETHER.get(one, ALL) and one in TOGETHER.get(other, ALL):
            capabilities.check({one, other})
            continue
        with pytest.raises(NotApplicable) as caught:
            capabilities.check({one, other})
        assert one.remedy in str(caught.value) and other.remedy in str(caught.value)
