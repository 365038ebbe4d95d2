import pytest

from ulskip_cli.core.config import compose, compose_training, decoding_of
from ulskip_cli.core.errors import NotApplicable, UsageError

ADAPTER = ["train=adapter", "model.path=x"]


@pytest.mark.parametrize("key", ["temperature=0.7", "top_p=0.5", "top_k=3"])
def test_options_of_sampling_require_sampling(key):
    with pytest.raises(UsageError, match=rf"decoding\.{key.partition('=')[0]}.*do_sample=true"):
        compose([f"decoding.{key}"])
    assert compose(["decoding.do_sample=true", f"decoding.{key}"]).decoding.do_sample


def test_decoding_options_of_python_callers_are_checked():
    assert decoding_of({"stop": "x"}).stop == ("x",)
    for values, named in (({"draft_tokens": 2}, "draft_tokens"), ({"top_k": 3}, "do_sample")):
        with pytest.raises(UsageError, match=named):
            decoding_of(values)


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["train.ce_weight=0"], r"train\.ce_weight"),
        (["train.ratios=[1,2]", "train.ratio_weights=[1]"], r"2 train\.ratio_weights"),
        (["train.validation={limit:3}", "train.held_out=3"], "got both"),
        (["train.method=full", "train.draft_length=2"], r"train\.draft_length"),
        (["train=lora", "correction.rank=4"], r"correction\.rank"),
        ([*ADAPTER, "prompt_layers=kept"], "prompt_layers=all"),
        ([*ADAPTER, "model=random", "model.path=llama-12x256"], "model=random"),
        ([*ADAPTER, "strategy=early_exit"], r"train\.method=lora"),
        ([*ADAPTER, "train.full_weight=1"], r"train\.full_weight"),
        ([*ADAPTER, "train.optimizer=muon"], r"train\.optimizer"),
        ([*ADAPTER, "correction.kind=none", "train.lora.rank=0"], r"train\.lora\.rank=16"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_values_of_a_training_that_exclude_each_other_are_refused(overrides, named):
    with pytest.raises(UsageError, match=named):
        compose_training(overrides)


def test_a_training_refuses_what_it_does_not_support():
    with pytest.raises(NotApplicable, match=r"model\.quantization=null"):
        compose_training(["model.path=x", "model.quantization=torchao-int8"])
