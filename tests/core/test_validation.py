import pytest

from ulskip_cli.core.config import compose, compose_training, decoding_of
from ulskip_cli.core.errors import UsageError

ADAPTER = ["train=adapter", "model.path=x"]


def test_decoding_options_of_python_callers_are_checked():
    assert decoding_of({"stop": "x"}).stop == ("x",)
    for values, named in (({"draft_tokens": 2}, "draft_tokens"), ({"top_k": 3}, "do_sample")):
        with pytest.raises(UsageError, match=named):
            decoding_of(values)


def test_a_device_of_torch_is_accepted_and_no_other():
    assert compose(["model.device=xpu:1"]).model.device == "xpu:1"
    with pytest.raises(UsageError, match=r"model\.device.*another device of torch, got 'gpu:0'"):
        compose(["model.device=gpu:0"])


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["train.ratio=2"], r"train\.ratio'.*train\.ratios"),
        (["train=papr"], "papr.*paper"),
        (["decoding=beam"], "unknown key 'decoding'"),
        (["train.ce_weight=0"], r"train\.ce_weight"),
        (["train.own.samples=2"], r"train\.responses=own"),
        (["train.validation={limit:3}", "train.held_out=3"], "got both"),
        (["model.device=cuda:1"], "CUDA_VISIBLE_DEVICES=1"),
        (["train.method=full", "train.gap_weight=2"], r"train\.gap_weight"),
        (["train=lora", "correction.rank=4"], r"correction\.rank"),
        (["train.method=full", "train.lora.rank=8"], r"train\.lora"),
        (["train.ratios=[2,2]"], "without repetitions"),
        ([*ADAPTER, "strategy=full"], "strategy=full"),
        ([*ADAPTER, "prompt_layers=kept"], "prompt_layers=all"),
        (["model=random", "model.path=llama-12x256"], "random weights"),
        ([*ADAPTER, "strategy=early_exit"], r"train\.method=lora"),
        ([*ADAPTER, "train.freeze_embeddings=true"], r"train\.freeze_embeddings"),
        ([*ADAPTER, "correction.kind=none", "train.lora.rank=0"], r"train\.lora\.rank=16"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_values_that_no_training_can_have_are_refused(overrides, named):
    with pytest.raises(UsageError, match=named):
        compose_training(overrides)
