import os
import subprocess

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import NUM_LAYERS, build_model, random_ids
from torch.nn import functional

from ulskip_cli.engines.torch import cpu_kernels, kernel_build
from ulskip_cli.engines.torch.cpu_kernels import with_decode_attention
from ulskip_cli.engines.torch.decode_steps import EagerSteps
from ulskip_cli.inference import kv_cache, shallow_view


@pytest.fixture(autouse=True)
def built():
    if reason := cpu_kernels.load_kernels():
        pytest.skip(f"no kernel: {reason}")


sizes = st.integers(1, 70)


@given(
    rows=st.integers(1, 20),
    inputs=sizes,
    outputs=sizes,
    with_bias=st.booleans(),
    half=st.booleans(),
)
def test_the_product_of_any_shape(rows, inputs, outputs, with_bias, half):
    dtype = torch.bfloat16 if half else torch.float32
    inputs += inputs % 2 * half
    generator = torch.Generator().manual_seed(rows * inputs + outputs)
    hidden, weight, bias = (
        torch.randn(*shape, generator=generator).to(dtype)
        for shape in ((rows, inputs), (outputs, inputs), (outputs,))
    )
    bias = bias if with_bias else None
    packed = cpu_kernels.pack(weight)
    got = torch.ops.ulskip.linear(hidden, packed, bias, outputs)
    exact = functional.linear(
        hidden.double(), weight.double(), bias.double() if with_bias else None
    )
    assert got.dtype == dtype
    tolerance = {"rtol": 2**-8, "atol": 2**-6} if half else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(got.double(), exact, **tolerance)
    other = cpu_kernels.pack(weight[:1])
    together = torch.ops.ulskip.linears(
        hidden.view(rows, 1, inputs), [other, packed, other], [None, bias, None], [1, outputs, 1]
    )
    assert torch.equal(together[1].view(rows, outputs), got)
    assert torch.equal(together[0], together[2])
    assert torch.equal(together[0].view(rows, 1), torch.ops.ulskip.linear(hidden, other, None, 1))


@given(
    batch=st.integers(1, 3),
    kv_heads=st.integers(1, 3),
    shared=st.integers(1, 6),
    queries=st.integers(1, 5),
    width=sizes,
    length=sizes,
    masked=st.sampled_from(["no", "every sequence", "one for all"]),
    half=st.booleans(),
)
def test_attention_of_any_shape(batch, kv_heads, shared, queries, width, length, masked, half):
    dtype = torch.bfloat16 if half else torch.float32
    generator = torch.Generator().manual_seed(batch * kv_heads * shared + width * length)

    def random(*shape):
        return torch.randn(*shape, generator=generator).to(dtype)

    query = random(batch, queries, kv_heads * shared, width).transpose(1, 2)
    keys, values = (random(batch, kv_heads, length + 3, width)[:, :, :length] for _ in range(2))
    mask = None
    if masked != "no":
        hidden = (
            torch.rand(
                batch if masked == "every sequence" else 1, 1, queries, length, generator=generator
            )
            < 0.5
        )
        hidden[..., -1] = False
        mask = torch.zeros(hidden.shape, dtype=dtype).masked_fill(hidden, torch.finfo(dtype).min)
    got = torch.ops.ulskip.attention(query, keys, values, mask, 0.3)
    doubles = [
        tensor.repeat_interleave(times, 1).double()
        for tensor, times in ((query, 1), (keys, shared), (values, shared))
    ]
    scores = doubles[0] @ doubles[1].transpose(-1, -2) * 0.3
    exact = (scores if mask is None else scores + mask.double()).softmax(-1) @ doubles[2]
    assert got.dtype == dtype
    tolerance = {"rtol": 2**-8, "atol": 2**-7} if half else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(got.double(), exact.transpose(1, 2), **tolerance)


def test_attention_to_keys_far_apart():
    # The weight of every key but the largest is zero, also where the exponential is out of range.
    keys = torch.tensor([0.0, 500.0, -500.0, 499.0]).view(1, 1, 4, 1)
    got = torch.ops.ulskip.attention(
        torch.ones(1, 1, 1, 1), keys, torch.arange(4.0).view(1, 1, 4, 1), None, 1.0
    )
    weights = keys.flatten().softmax(0)
    torch.testing.assert_close(got.flatten(), (weights * torch.arange(4.0)).sum(0, keepdim=True))


@pytest.fixture
def not_loaded(monkeypatch, tmp_path):
    """The commands of a process that has not loaded the kernel, on a machine that has not compiled
    it.
    """
    monkeypatch.setattr(cpu_kernels, "is_loaded", lambda: False)
    monkeypatch.setattr(cpu_kernels, "_failures", {})  # those of earlier tests in this process
    monkeypatch.setenv("ULSKIP_CACHE", str(tmp_path))
    commands = []
    run = subprocess.run
    monkeypatch.setattr(
        subprocess,
        "run",
        lambda command, **options: commands.append(command) or run(command, **options),
    )
    return commands


def test_reasons_not_to_build(not_loaded, monkeypatch, tmp_path):
    assert cpu_kernels.build_failure() is None
    monkeypatch.setenv("ULSKIP_KERNEL", "off")
    assert cpu_kernels.load_kernels() == "ULSKIP_KERNEL=off"
    monkeypatch.delenv("ULSKIP_KERNEL")
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(kernel_build.shutil, "which", lambda name: None)
    assert cpu_kernels.build_failure() == cpu_kernels.load_kernels() == "no C++ compiler"
    assert not not_loaded and not list(tmp_path.iterdir())


def test_a_failed_build_is_reported_and_not_repeated(not_loaded, monkeypatch, tmp_path):
    compiler = tmp_path / "broken"
    compiler.write_text("#!/bin/sh\necho no such header >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    builds = []
    reason = cpu_kernels.load_kernels(lambda: builds.append(1))
    assert "no such header" in reason
    assert (
        cpu_kernels.load_kernels(lambda: builds.append(1)) == cpu_kernels.build_failure() == reason
    )
    assert len(builds) == len(not_loaded) == 1
    assert not list(tmp_path.rglob("*.so"))
    monkeypatch.setenv("CXX", os.devnull)  # another compiler is another try
    assert cpu_kernels.build_failure() is None
    assert os.devnull in cpu_kernels.load_kernels()


@pytest.fixture
def lengths(monkeypatch):
    """The lengths of all keys that the kernel attended to."""
    found = []
    kernel = torch.ops.ulskip.attention

    def attention(query, keys, values, mask, scale):
        found.append(keys.shape[2])
        return kernel(query, keys, values, mask, scale)

    monkeypatch.setattr(torch.ops.ulskip, "attention", attention)
    return found


@pytest.mark.parametrize("count", [1, 3], ids=["steps", "checks of drafts"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen2"])
def test_passes_equal_those_of_sdpa(name, count, lengths):
    model = build_model(name)
    ids, mask = random_ids(3, 9), torch.ones(3, 9, dtype=torch.long)
    mask[1, :4] = 0

    def logits_of(view):
        cache = kv_cache.new_cache(model)
        shallow_view.forward_with_cache(model, ids[:, :6], mask[:, :6], cache)
        steps = EagerSteps(view, cache, mask[:, :6], 4, several=True)
        parts = ids[:, 6:].split(count, dim=1)
        return torch.cat([steps.forward(part, view, steps.cache) for part in parts], dim=1)

    with torch.inference_mode():
        expected = logits_of(model)
        assert not lengths
        got = logits_of(with_decode_attention(model))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    assert lengths == [end for end in range(6 + count, 10, count) for _ in range(NUM_LAYERS)]


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


def test_a_build_in_the_background_is_the_one_that_is_loaded(monkeypatch, tmp_path):
    monkeypatch.setenv("ULSKIP_CACHE", str(tmp_path))
    monkeypatch.delenv("ULSKIP_KERNEL", raising=False)
    compiler, log = tmp_path / "compiler", tmp_path / "log"
    script = f'echo built >> {log}\nwhile [ "$1" != -o ]; do shift; done\n: > "$2"\n'
    compiler.write_text(f"#!/bin/sh\n{script}")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    kernel_build.start("cpu")
    path = kernel_build.build(kernel_build.compiler())
    assert path.is_file() and log.read_text() == "built\n"
    kernel_build.start("cpu")
    assert kernel_build.build(kernel_build.compiler()) == path and log.read_text() == "built\n"
