import pytest
import torch
from reference import build_model
from torch import nn
from torch.nn import functional

from ulskip_cli.inference import float32_products as module
from ulskip_cli.inference.float32_products import FEW_TOKENS, float32_products
from ulskip_cli.inference.kv_cache import new_cache
from ulskip_cli.inference.shallow_view import forward_with_cache

LENGTH = 2 * FEW_TOKENS


@pytest.fixture(params=["avx2", "avx512_bf16 bf16"])
def is_slow(request, monkeypatch):
    """Compute on a processor without and with instructions for bfloat16 in turn."""
    monkeypatch.setattr(module, "cpu_flags", lambda: f"fpu {request.param}")
    return "bf16" not in request.param


@pytest.mark.parametrize("has_bias", [True, False])
def test_products_are_those_of_float32_rounded(is_slow, llama, has_bias):
    torch.manual_seed(0)
    layer = nn.Linear(768, 32, bias=has_bias).bfloat16()
    hidden = torch.randn(LENGTH, 768).bfloat16()
    query = torch.randn(2, 2, LENGTH, 64).bfloat16()
    wide = [part.float() for part in (hidden, layer.weight)]
    wide.append(layer.bias.float() if has_bias else None)
    wanted = functional.linear(*wide).bfloat16()
    attended = functional.scaled_dot_product_attention(*[query.float()] * 3, is_causal=True)
    model = llama.bfloat16()
    with float32_products(model, LENGTH):
        product = layer(hidden)
        scores = functional.scaled_dot_product_attention(query, query, query, is_causal=True)
    assert product.dtype == scores.dtype == torch.bfloat16
    torch.testing.assert_close(product, wanted)
    if is_slow:
        assert torch.equal(product, wanted) and torch.equal(scores, attended.bfloat16())
    with float32_products(model, FEW_TOKENS):
        assert torch.equal(layer(hidden), functional.linear(hidden, layer.weight, layer.bias))


@pytest.mark.parametrize("name", ["llama", "bloom", "gpt2", "qwen2"])
def test_logits_of_a_prompt_are_those_of_the_wider_model(is_slow, name):
    model = build_model(name)
    ids = torch.randint(0, 90, (2, LENGTH), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    wide = model.bfloat16().float()
    wanted = forward_with_cache(wide, ids, mask, new_cache(wide))
    narrow = model.bfloat16()
    logits = forward_with_cache(narrow, ids, mask, new_cache(narrow))
    assert logits.dtype == torch.bfloat16
    assert (logits - wanted).abs().mean() < 0.1 * wanted.std()
