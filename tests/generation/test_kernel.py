import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from ulskip_cli.generation import kernel


@pytest.fixture(autouse=True)
def built():
    if kernel.why_not():
        pytest.skip(f"no kernel: {kernel.why_not()}")


sizes = st.integers(1, 70)


@given(rows=st.integers(1, 20), inputs=sizes, outputs=sizes, with_bias=st.booleans(), half=st.booleans())
def test_the_product_of_any_shape(rows, inputs, outputs, with_bias, half):
    dtype = torch.bfloat16 if half else torch.float32
    inputs += inputs % 2 * half
    generator = torch.Generator().manual_seed(rows * inputs + outputs)
    hidden, weight, bias = (
        torch.randn(*shape, generator=generator).to(dtype) for shape in ((rows, inputs), (outputs, inputs), (outputs,))
    )
    got = kernel.linear(hidden, kernel.pack(weight), bias if with_bias else None, outputs)
    exact = functional.linear(hidden.double(), weight.double(), bias.double() if with_bias else None)
    assert got.dtype == dtype
    tolerance = {"rtol": 2**-8, "atol": 2**-6} if half else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(got.double(), exact, **tolerance)


def test_leading_dimensions_stay():
    hidden = torch.randn(3, 2, 8).transpose(0, 1)
    weight = torch.randn(5, 8)
    got = kernel.linear(hidden, kernel.pack(weight), None, 5)
    torch.testing.assert_close(got, functional.linear(hidden, weight))


def test_without_a_compiler_there_is_a_reason(monkeypatch, tmp_path):
    look = kernel.why_not.__wrapped__
    assert not kernel.will_build()  # it is there
    monkeypatch.setenv("ULSKIP_KERNEL", "off")
    assert look() == "ULSKIP_KERNEL=off"
    assert not kernel.will_build()
    monkeypatch.delenv("ULSKIP_KERNEL")
    monkeypatch.setenv("ULSKIP_CACHE", str(tmp_path))
    monkeypatch.setenv("CXX", os.devnull)
    assert kernel.will_build()
    assert "failed" in look()
    assert not list(tmp_path.rglob("*.so"))
