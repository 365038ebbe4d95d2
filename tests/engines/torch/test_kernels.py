import os
import subprocess

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from ulskip_cli.engines import torch as torch_engines
from ulskip_cli.engines.torch import kernels

pytestmark = pytest.mark.usefixtures("needs_kernels")
sizes = st.integers(1, 70)


@given(st.integers(1, 20), sizes, sizes, st.booleans(), st.booleans())
def test_the_product_of_any_shape(rows, inputs, outputs, with_bias, half):
    dtype = torch.bfloat16 if half else torch.float32
    inputs += inputs % 2 * half
    generator = torch.Generator().manual_seed(rows * inputs + outputs)
    shapes = ((rows, inputs), (outputs, inputs), (outputs,))
    hidden, weight, bias = (torch.randn(*one, generator=generator).to(dtype) for one in shapes)
    bias = bias if with_bias else None
    got = multiplied(hidden, weight, bias)
    wide = bias.double() if with_bias else None
    exact = functional.linear(hidden.double(), weight.double(), wide)
    assert got.dtype == dtype
    tolerance = {"rtol": 2**-8, "atol": 2**-6} if half else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(got.double(), exact, **tolerance)
    row = multiplied(hidden[-1:], weight, bias)
    assert torch.equal(row, got[-1:])  # whatever other rows there are


def multiplied(hidden, weight, bias=None):
    packed = kernels.pack(weight)
    return kernels.multiply(packed.linear(bias), hidden)


def test_float32_weights_that_bfloat16_represents_take_half_of_the_bytes_for_the_same_bits():
    weight, hidden = torch.randn(70, 48).bfloat16().float(), torch.randn(9, 48)
    halves, other = (kernels.pack(part).panels for part in (weight, weight + 2**-20))
    assert 2 * halves.nbytes == other.nbytes
    panels = kernels.panels(weight, 1)
    exact = kernels.PackedWeight(panels, 0, 70).linear(None)  # points to the panels
    assert torch.equal(multiplied(hidden, weight), kernels.multiply(exact, hidden))


@pytest.fixture
def not_loaded(monkeypatch, tmp_path, spy):
    """The calls of commands in a process that has neither loaded nor compiled the kernel."""
    monkeypatch.setattr(kernels, "_loaded", [])
    monkeypatch.setattr(kernels, "_failures", {})  # those of earlier tests in this process
    monkeypatch.setenv("ULSKIP_CACHE", str(tmp_path))
    return spy(subprocess, "run").call_args_list


def test_reasons_not_to_build(not_loaded, monkeypatch, tmp_path):
    assert kernels.build_failure() is None
    monkeypatch.setenv("ULSKIP_KERNEL", "off")
    assert kernels.load_kernels() == "ULSKIP_KERNEL=off"
    monkeypatch.delenv("ULSKIP_KERNEL")
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(torch_engines.shutil, "which", lambda name: None)
    assert kernels.build_failure() == kernels.load_kernels() == "no C++ compiler"
    assert not not_loaded and not list(tmp_path.iterdir())


def test_a_failed_build_is_reported_and_not_repeated(not_loaded, monkeypatch, tmp_path):
    compiler = tmp_path / "broken"
    compiler.write_text("#!/bin/sh\necho no such header >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    builds = []
    reason = kernels.load_kernels(lambda: builds.append(1))
    assert "no such header" in reason
    assert kernels.load_kernels(lambda: builds.append(1)) == kernels.build_failure() == reason
    assert len(builds) == len(not_loaded) == 1
    assert not list(tmp_path.rglob("*.so"))
    monkeypatch.setenv("CXX", os.devnull)  # another compiler is another try
    assert kernels.build_failure() is None
    assert os.devnull in kernels.load_kernels()
