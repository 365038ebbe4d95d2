"""Repeat checks behind docs/architectures.md, and compare the page with the verdicts."""

import json

import architectures
import pytest
import transformers
from architecture_check import FAILS, REFUSED, WORKS, WRONG, judge
from tiny_configs import model_types

STORED = architectures.STORED.read_text("utf-8")
VERDICTS = {verdict.name: verdict for verdict in architectures.read(STORED)}
# One of every habit: experts, windows, chunks, recurrence alone and beside attention, indexed keys,
# odd names, refusals.
AGAIN = ["Mixtral", "GptOss", "Llama4", "Qwen3Next", "Mamba", "Bamba", "DeepseekV32", "GPTNeo"]
AGAIN += ["Roberta"]
same_transformers = pytest.mark.skipif(
    transformers.__version__ != json.loads(STORED)["transformers"],
    reason="the verdicts are of another transformers",
)


@same_transformers
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", AGAIN)
def test_a_check_gives_the_stored_verdict(name):
    name = f"{name}ForCausalLM"
    found, stored = judge(name, model_types()[name]), VERDICTS[name]
    for key in ("outcome", "layers", "engines"):
        assert getattr(found, key) == getattr(stored, key)


@same_transformers
def test_every_class_has_a_verdict():
    assert set(VERDICTS) == set(model_types())


def test_the_page_is_made_from_the_stored_verdicts():
    page = architectures.PAGE.read_text("utf-8")
    assert page == architectures.page(STORED)
    for name, verdict in VERDICTS.items():
        assert verdict.outcome != WORKS or name.replace("ForCausalLM", "") in page


def test_nothing_is_silently_wrong():
    outcomes = [verdict.outcome for verdict in VERDICTS.values()]
    assert WRONG not in outcomes and FAILS not in outcomes
    assert outcomes.count(WORKS) > 100
    assert outcomes.count(REFUSED) > 10
