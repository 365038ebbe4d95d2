import json

import pytest

from ulskip_cli import lm_eval_call
from ulskip_cli.errors import UsageError


def test_overrides_come_first_and_reach_the_model_as_they_are():
    call = lm_eval_call.read(["model=tiny", "strategy=custom", "strategy.layers=[0,5,11]", "--tasks", "x", "--limit", "3"])
    assert call.config.name == "lm_eval"
    assert call.config.strategy["layers"] == [0, 5, 11]
    assert call.arguments[:6] == ["--tasks", "x", "--limit", "3", "--model", "ulskip"]
    given = json.loads(call.arguments[call.arguments.index("--model_args") + 1])
    assert given == {"overrides": ["model=tiny", "strategy=custom", "strategy.layers=[0,5,11]", "name=lm_eval"]}
    assert str(call.output) == "results/lm_eval/lm_eval"


def test_a_model_of_the_harness_is_its_own_matter():
    call = lm_eval_call.read(["--model=hf", "--model_args", "pretrained=x", "--tasks", "x", "-o", "there"])
    assert call.config is None
    assert call.arguments == ["--model=hf", "--model_args", "pretrained=x", "--tasks", "x", "-o", "there"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model=tiny"], "expected the harness's options"),
        (["ratio=2", "--model", "hf"], "--model hf is the harness's own, which takes no ratio=2"),
        (["--model", "ulskip", "--model_args", "ratio=2", "--tasks", "x"], "instead of --model_args"),
        (["ratoi=2", "--tasks", "x"], "unknown key 'ratoi'; did you mean 'ratio'"),
        (["model=tiny", "ratio=9", "--tasks", "x"], "6"),
    ],
)
def test_what_cannot_work_is_refused_at_once(arguments, message):
    with pytest.raises(UsageError, match=message):
        lm_eval_call.read(arguments)


def test_a_missing_harness_is_named_with_what_brings_it(monkeypatch):
    monkeypatch.setattr(lm_eval_call, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'ulskip\[lm-eval\]'"):
        lm_eval_call.read(["--tasks", "x"])
