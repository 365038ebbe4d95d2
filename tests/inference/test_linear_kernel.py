import os
import subprocess

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from ulskip_cli.inference import linear_kernel


@pytest.fixture(autouse=True)
def built():
    if reason := linear_kernel.load():
        pytest.skip(f"no kernel: {reason}")


sizes = st.integers(1, 70)


@given(rows=st.integers(1, 20), inputs=sizes, outputs=sizes, with_bias=st.booleans(), half=st.booleans())
def test_the_product_of_any_shape(rows, inputs, outputs, with_bias, half):
    dtype = torch.bfloat16 if half else torch.float32
    inputs += inputs % 2 * half
    generator = torch.Generator().manual_seed(rows * inputs + outputs)
    hidden, weight, bias = (
        torch.randn(*shape, generator=generator).to(dtype) for shape in ((rows, inputs), (outputs, inputs), (outputs,))
    )
    got = linear_kernel.linear(hidden, linear_kernel.pack(weight), bias if with_bias else None, outputs)
    exact = functional.linear(hidden.double(), weight.double(), bias.double() if with_bias else None)
    assert got.dtype == dtype
    tolerance = {"rtol": 2**-8, "atol": 2**-6} if half else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(got.double(), exact, **tolerance)


def test_leading_dimensions_stay():
    hidden = torch.randn(3, 2, 8).transpose(0, 1)
    weight = torch.randn(5, 8)
    got = linear_kernel.linear(hidden, linear_kernel.pack(weight), None, 5)
    torch.testing.assert_close(got, functional.linear(hidden, weight))


@pytest.fixture
def not_loaded(monkeypatch, tmp_path):
    """The commands of a process that has not loaded the kernel, on a machine that has not compiled it."""
    monkeypatch.setattr(linear_kernel, "is_loaded", lambda: False)
    monkeypatch.setattr(linear_kernel, "_failures", {})  # those of earlier tests in this process
    monkeypatch.setenv("ULSKIP_CACHE", str(tmp_path))
    commands = []
    run = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda command, **options: commands.append(command) or run(command, **options))
    return commands


def test_unsupported_reason_builds_nothing(not_loaded, tmp_path):
    assert linear_kernel.unsupported_reason() is None
    assert not not_loaded
    assert not list(tmp_path.iterdir())


def test_switched_off_is_a_reason(not_loaded, monkeypatch):
    monkeypatch.setenv("ULSKIP_KERNEL", "off")
    assert linear_kernel.unsupported_reason() == linear_kernel.load() == "ULSKIP_KERNEL=off"
    assert not not_loaded


def test_no_compiler_is_a_reason(not_loaded, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(linear_kernel.shutil, "which", lambda name: None)
    assert linear_kernel.unsupported_reason() == linear_kernel.load() == "no C++ compiler"
    assert not not_loaded


def test_a_failed_build_is_reported_and_not_repeated(not_loaded, monkeypatch, tmp_path):
    compiler = tmp_path / "broken"
    compiler.write_text("#!/bin/sh\necho no such header >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    builds = []
    reason = linear_kernel.load(lambda: builds.append(1))
    assert "no such header" in reason
    assert linear_kernel.load(lambda: builds.append(1)) == linear_kernel.unsupported_reason() == reason
    assert len(builds) == len(not_loaded) == 1
    assert not list(tmp_path.rglob("*.so"))
    monkeypatch.setenv("CXX", os.devnull)  # another compiler is another try
    assert linear_kernel.unsupported_reason() is None
    assert os.devnull in linear_kernel.load()
