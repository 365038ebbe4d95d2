import pytest
import torch
from reference import NUM_LAYERS, build_model, random_ids

from ulskip_cli.engines.torch import cpu_kernels
from ulskip_cli.engines.torch.decode_attention import with_decode_attention
from ulskip_cli.engines.torch.decode_steps import EagerSteps
from ulskip_cli.inference import shallow_view


@pytest.fixture(autouse=True)
def built():
    if reason := cpu_kernels.load():
        pytest.skip(f"no kernel: {reason}")


@pytest.fixture
def lengths(monkeypatch):
    """The lengths of all keys that the kernel attended to."""
    found = []
    kernel = cpu_kernels.attention

    def attention(query, keys, values, mask, scale):
        found.append(keys.shape[2])
        return kernel(query, keys, values, mask, scale)

    monkeypatch.setattr(cpu_kernels, "attention", attention)
    return found


def logits_of(model, view, ids, mask, steps):
    """The logits [batch, steps, vocab_size] of a view's steps after a prompt."""
    cache, prompt = shallow_view.new_cache(model), ids.shape[1] - steps
    shallow_view.forward_with_cache(model, ids[:, :prompt], mask[:, :prompt], cache)
    run = EagerSteps(view, cache, mask[:, :prompt], steps + 1)
    return torch.stack([run(ids[:, at : at + 1]) for at in range(prompt, ids.shape[1])], dim=1)


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen2"])
def test_steps_equal_those_of_sdpa(name, lengths):
    model = build_model(name)
    ids, mask = random_ids(3, 9), torch.ones(3, 9, dtype=torch.long)
    mask[1, :4] = 0
    with torch.inference_mode():
        expected = logits_of(model, model, ids, mask, 4)
        assert not lengths
        got = logits_of(model, with_decode_attention(model), ids, mask, 4)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    assert lengths == [length for length in range(6, 10) for _ in range(NUM_LAYERS)]


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen2"])
def test_checks_of_drafts_equal_those_of_sdpa(name, lengths):
    model = build_model(name)
    ids, mask = random_ids(3, 9), torch.ones(3, 9, dtype=torch.long)
    mask[1, :4] = 0

    def verify(full):
        cache = shallow_view.new_cache(model)
        shallow_view.forward_with_cache(model, ids[:, :6], mask[:, :6], cache)
        steps = EagerSteps(full, cache, mask[:, :6], 4, several=True)
        return steps.forward(ids[:, 6:], steps.view, steps.cache)

    with torch.inference_mode():
        expected = verify(model)
        assert not lengths
        got = verify(with_decode_attention(model))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    assert lengths == [9] * NUM_LAYERS


def test_gradients_flow_without_the_kernel(llama, lengths):
    ids = random_ids(2, 1)
    changed = with_decode_attention(llama)
    changed(ids, use_cache=False).logits.sum().backward()
    assert not lengths
    assert all(parameter.grad is not None for parameter in llama.parameters())


def test_eager_attention_stays(llama, lengths):
    llama.set_attn_implementation("eager")
    with torch.inference_mode():
        with_decode_attention(llama)(random_ids(2, 1), use_cache=False)
    assert not lengths


def test_the_source_does_not_change(llama, lengths):
    with_decode_attention(llama)
    with torch.inference_mode():
        llama(random_ids(2, 1), use_cache=False)
    assert not lengths
