import pytest
import torch
from reference import build_model, random_ids
from torch import nn
from transformers.pytorch_utils import Conv1D

from ulskip_cli import views
from ulskip_cli.generation import kernel
from ulskip_cli.generation import packed as packing
from ulskip_cli.generation.packed import PackedLinear, packed, packer

CLOSE = {torch.float32: {"rtol": 1e-4, "atol": 1e-4}, torch.bfloat16: {"rtol": 0.02, "atol": 0.05}}


@pytest.fixture(params=["panels", "onednn"])
def by(request, monkeypatch):
    """Either way of packing, where this machine has it."""
    if request.param == "onednn":
        monkeypatch.setattr(kernel, "why_not", lambda: "switched off")
    if packer(build_model("llama").to(torch.bfloat16)) != request.param:
        pytest.skip(f"no packing by {request.param} on this machine")
    return request.param


@pytest.mark.parametrize("dtype", CLOSE, ids=str)
@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom"])
def test_packed_layers_give_what_the_plain_ones_give(name, dtype, by):
    model = build_model(name).to(dtype)
    view = views.shallow_view(model, (0, 2, 5))
    fast, ids = packed(view), random_ids(3, 7)
    with torch.inference_mode():
        expected, got = view(ids, use_cache=False).logits.float(), fast(ids, use_cache=False).logits.float()
    torch.testing.assert_close(got, expected, **CLOSE[dtype])
    kinds = {type(module) for module in fast.modules() if type(module) in (PackedLinear, nn.Linear, Conv1D)}
    assert kinds == {PackedLinear}
    assert {module.by for module in fast.modules() if type(module) is PackedLinear} == {by}


def test_the_source_is_not_touched(llama):
    before = {name: type(module) for name, module in llama.named_modules()}
    packed(llama)
    assert {name: type(module) for name, module in llama.named_modules()} == before


def test_views_of_one_model_share_the_copies(llama):
    deep, shallow = (packed(views.shallow_view(llama, kept)) for kept in ((0, 2, 3, 5), (0, 5)))
    if deep is llama:
        pytest.skip("no packing on this machine")

    def copies(view):
        return {id(module) for module in view.modules() if type(module) is PackedLinear}

    assert copies(shallow) < copies(deep)


def test_changed_weights_are_packed_again(llama):
    ids = random_ids(1, 4)
    before = packed(llama)(ids, use_cache=False).logits
    with torch.no_grad():
        llama.lm_head.weight.mul_(2)
        torch.testing.assert_close(packed(llama)(ids, use_cache=False).logits, 2 * before)


def test_bias_is_added(by):
    layer = nn.Linear(32, 16)
    hidden = torch.randn(2, 3, 32)
    torch.testing.assert_close(PackedLinear(layer, by)(hidden), layer(hidden), **CLOSE[torch.float32])


def test_what_packing_does_not_serve_stays_as_it_is(llama, monkeypatch):
    monkeypatch.setattr(packing, "MEMORY_SHARE", 0)
    assert packer(llama) is None
    assert packed(llama) is llama
    monkeypatch.undo()
    assert packed(llama.to(torch.float16)) is llama
