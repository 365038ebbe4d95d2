import sys

import pytest
from recipe import RECIPES, load_recipe

from ulskip_cli.core.config import compose

real_model = load_recipe("real_model/reproduce.py")
score = load_recipe("real_model/score.py")
PROBLEM = {
    "prompt": 'def double(x):\n    """Double a number."""\n',
    "test": "def check(function):\n    assert function(2) == 4\n",
    "entry_point": "double",
}


def test_a_point_leaves_out_its_skipped_layers():
    strategy, layers = real_model.keep(22)
    assert strategy == "strategy=custom"
    assert layers.startswith("strategy.layers=[0,1,2,5,") and layers.endswith("22,23]")


@pytest.mark.parametrize("name", real_model.POINTS)
def test_every_point_is_a_valid_configuration(name, tmp_path):
    task = real_model.task(name, tmp_path)
    for point in real_model.POINTS[name]:
        model = [] if point is real_model.SMALLER else ["model.path=model"]
        config = compose([*task, *model, *point], command="run")
        assert f"task={config.task.name}" == task[0]


def test_an_answer_continues_or_defines_the_function(monkeypatch):
    monkeypatch.setattr(score, "SECONDS", 1)
    assert score.passes(PROBLEM, "    return 2 * x")
    assert score.passes(PROBLEM, "def double(x):\n    return x + x")
    assert not score.passes(PROBLEM, "    return x")
    assert not score.passes(PROBLEM, "    while True: pass")


@pytest.fixture
def adapter(monkeypatch):
    monkeypatch.syspath_prepend(RECIPES / "real_model")
    monkeypatch.setitem(sys.modules, "reproduce", real_model)  # other recipes have this name too
    return load_recipe("real_model/adapter.py")


def test_functions_with_a_docstring_are_problems(adapter):
    text = '"""Double a number, and say so in many words. """'
    body = f"    {text * 4}\n    return 2 * x\n"
    source = f"def double(x):\n{body}\n\ndef short(x):\n    return x\n"
    (problem,) = adapter.functions(source)
    assert problem["prompt"].endswith('"""\n') and problem["entry_point"] == "double"
    assert problem["canonical_solution"] == "    return 2 * x\n"
