import os
import subprocess

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from ulskip_cli.engines.torch import cpu_kernels


@pytest.fixture(autouse=True)
def built():
    if reason := cpu_kernels.load():
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
    got = cpu_kernels.linear(hidden, cpu_kernels.pack(weight), bias if with_bias else None, outputs)
    exact = functional.linear(
        hidden.double(), weight.double(), bias.double() if with_bias else None
    )
    assert got.dtype == dtype
    tolerance = {"rtol": 2**-8, "atol": 2**-6} if half else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(got.double(), exact, **tolerance)


def test_leading_dimensions_stay():
    hidden = torch.randn(3, 2, 8).transpose(0, 1)
    weight = torch.randn(5, 8)
    got = cpu_kernels.linear(hidden, cpu_kernels.pack(weight), None, 5)
    torch.testing.assert_close(got, functional.linear(hidden, weight))


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
    got = cpu_kernels.attention(query, keys, values, mask, 0.3)
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
    got = cpu_kernels.attention(
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


def test_unsupported_reason_builds_nothing(not_loaded, tmp_path):
    assert cpu_kernels.unsupported_reason() is None
    assert not not_loaded
    assert not list(tmp_path.iterdir())


def test_switched_off_is_a_reason(not_loaded, monkeypatch):
    monkeypatch.setenv("ULSKIP_KERNEL", "off")
    assert cpu_kernels.unsupported_reason() == cpu_kernels.load() == "ULSKIP_KERNEL=off"
    assert not not_loaded


def test_no_compiler_is_a_reason(not_loaded, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(cpu_kernels.shutil, "which", lambda name: None)
    assert cpu_kernels.unsupported_reason() == cpu_kernels.load() == "no C++ compiler"
    assert not not_loaded


def test_a_failed_build_is_reported_and_not_repeated(not_loaded, monkeypatch, tmp_path):
    compiler = tmp_path / "broken"
    compiler.write_text("#!/bin/sh\necho no such header >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    builds = []
    reason = cpu_kernels.load(lambda: builds.append(1))
    assert "no such header" in reason
    assert cpu_kernels.load(lambda: builds.append(1)) == cpu_kernels.unsupported_reason() == reason
    assert len(builds) == len(not_loaded) == 1
    assert not list(tmp_path.rglob("*.so"))
    monkeypatch.setenv("CXX", os.devnull)  # another compiler is another try
    assert cpu_kernels.unsupported_reason() is None
    assert os.devnull in cpu_kernels.load()
