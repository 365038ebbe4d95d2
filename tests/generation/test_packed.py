import pytest
import torch
from reference import build_model, random_ids

from ulskip_cli import views
from ulskip_cli.generation import packed as packing
from ulskip_cli.generation.packed import PackedLinear, can_pack, packed


@pytest.fixture
def bfloat16(llama):
    model = llama.to(torch.bfloat16)
    if not can_pack(model):
        pytest.skip("this processor has no bfloat16 by oneDNN")
    return model


def test_packed_layers_give_what_the_plain_ones_give(bfloat16):
    view = views.shallow_view(bfloat16, (0, 2, 5))
    fast, ids = packed(view), random_ids(3, 7)
    with torch.inference_mode():
        expected, got = view(ids, use_cache=False).logits.float(), fast(ids, use_cache=False).logits.float()
    torch.testing.assert_close(got, expected, rtol=0.02, atol=0.05)
    kinds = [type(module) for module in fast.modules() if type(module) in (PackedLinear, torch.nn.Linear)]
    assert kinds == [PackedLinear] * (3 * 7 + 1)


def test_the_source_is_not_touched(bfloat16):
    before = {name: type(module) for name, module in bfloat16.named_modules()}
    packed(bfloat16)
    assert {name: type(module) for name, module in bfloat16.named_modules()} == before


def test_bias_is_added():
    layer = torch.nn.Linear(32, 16, dtype=torch.bfloat16)
    if not can_pack(torch.nn.Sequential(layer)):
        pytest.skip("this processor has no bfloat16 by oneDNN")
    hidden = torch.randn(2, 3, 32, dtype=torch.bfloat16)
    torch.testing.assert_close(PackedLinear(layer)(hidden), layer(hidden), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_what_packing_does_not_serve_stays_as_it_is(name, monkeypatch):
    model = build_model(name)  # float32, or without linear layers
    assert packed(model) is model
    monkeypatch.setattr(packing, "MEMORY_SHARE", 0)
    assert not can_pack(model.to(torch.bfloat16))
