"""Products with weights in 4 bits, against a reference in double precision."""

import shlex

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ulskip_cli.engines.torch import compiler, kernels

GROUP = 32
TINY = 1e-37  # smaller numbers lose digits or become 0
DTYPES = st.sampled_from([torch.float32, torch.bfloat16])
# Exponents of ten, one for each group; None is a group of zeros.
EXPONENTS = st.lists(st.sampled_from([None, -38, -20, -3, 0, 0, 0, 3, 17]), min_size=4, max_size=4)
NO_AVX512 = [f"-U__AVX512{name}__" for name in ("F", "BW", "VNNI", "BF16")]


@pytest.fixture(scope="module", params=["native", "avx2"], autouse=True)
def library(request):
    """Run each test with the library of this processor, and with that of one without AVX512."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "avx2":
            patch.setenv("CXX", shlex.join([*compiler(), *NO_AVX512]))
            patch.setattr(kernels, "_loaded", [])
        if reason := kernels.load_kernels():
            pytest.skip(f"no kernels: {reason}")
        if not kernels.library().ulskip_has_byte_products():
            pytest.skip("the processor has no products with 4 bits")
        yield


def drawn(rows, columns, exponents, seed):
    """Draw random numbers [rows, columns], whose groups have these exponents."""
    sizes = torch.tensor([0.0 if power is None else 10.0**power for power in exponents])
    generator = torch.Generator().manual_seed(seed)
    sizes = sizes.repeat_interleave(GROUP)[:columns]
    return torch.randn(rows, columns, generator=generator) * sizes


def in_groups(numbers):
    """Return numbers [rows, columns] as [rows, groups, 32], filled with zeros."""
    filled = torch.nn.functional.pad(numbers, (0, -numbers.shape[1] % GROUP))
    return filled.view(len(numbers), -1, GROUP)


def in_eight_bits(hidden):
    """Return inputs as the kernels round them, in double precision."""
    groups = in_groups(hidden.float())
    steps = groups.abs().amax(dim=2, keepdim=True).clamp(min=1e-30) / 127
    values = (groups.double() * (1 / steps).double()).round()
    assert values.abs().max() <= 127
    return (values * steps.double()).flatten(1)[:, : hidden.shape[1]]


def least_errors(weight):
    """Return the least squared error [rows, groups] of all scales that the kernels try."""
    groups = in_groups(weight.float())
    largest, smallest = groups.amax(dim=2, keepdim=True), groups.amin(dim=2, keepdim=True)
    peaks = largest.where(largest >= -smallest, smallest)
    errors = [(groups.double() ** 2).sum(dim=2)]
    for fortieths in range(32, 45):
        scales = (peaks / -8 * (fortieths / 40)).bfloat16().double()
        values = (groups.double() / scales.where(scales != 0, 1)).round().clamp(-8, 7)
        errors.append(((values * scales - groups.double()) ** 2).sum(dim=2))
    return torch.stack(errors).amin(dim=0)


def multiplied(packed, hidden, bias=None):
    return kernels.multiply(packed.linear(bias), hidden)


def unpacked(packed, inputs):
    """Return the weights [outputs, inputs]: each input alone is exact in 8 bits."""
    return multiplied(packed, torch.eye(inputs)).t()


@given(
    st.integers(1, 9),
    st.integers(1, 4 * GROUP),
    st.integers(1, 70),
    EXPONENTS,
    EXPONENTS,
    DTYPES,
    st.booleans(),
)
def test_products(rows, inputs, outputs, of_inputs, of_weights, dtype, has_bias):
    hidden = drawn(rows, inputs, of_inputs, seed=rows).to(dtype)
    weight = drawn(outputs, inputs, of_weights, seed=outputs).to(dtype)
    bias = torch.randn(outputs).to(dtype) if has_bias else None
    packed = kernels.pack_in_four_bits(weight)
    got = multiplied(packed, hidden, bias)
    rounded, weights = in_eight_bits(hidden), unpacked(packed, inputs).double().t()
    exact, size = rounded @ weights, rounded.abs() @ (weights.abs() + TINY)
    if bias is not None:
        exact, size = exact + bias.double(), size + bias.double().abs()
    rounding = exact.abs() * 2**-8 if dtype == torch.bfloat16 else 0
    assert ((got.double() - exact).abs() <= 1e-5 * size + rounding + TINY).all()
    assert torch.equal(multiplied(packed, hidden[-1:], bias), got[-1:])  # in any batch


@given(st.integers(1, 4 * GROUP), st.integers(1, 70), EXPONENTS, DTYPES)
def test_weights(inputs, outputs, exponents, dtype):
    weight = drawn(outputs, inputs, exponents, seed=inputs).to(dtype)
    packed = kernels.pack_in_four_bits(weight)
    exact = weight.double()
    errors, squares = (
        in_groups(part**2).sum(dim=2) for part in (unpacked(packed, inputs).double() - exact, exact)
    )
    # The products round to float32.
    assert (errors <= 1.001 * least_errors(weight) + 1e-12 * squares + GROUP * TINY**2).all()
    assert packed.panels.nbytes == -(-outputs // 32) * 32 * -(-inputs // GROUP) * (16 + 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_spoil_only_what_they_reach(bad, dtype):
    hidden, weight = torch.randn(6, 70).to(dtype), torch.randn(40, 70).to(dtype)
    expected = multiplied(kernels.pack_in_four_bits(weight), hidden)
    hidden[2, 65], weight[33, 1] = bad, bad
    got = multiplied(kernels.pack_in_four_bits(weight), hidden)
    spoiled = torch.zeros(6, 40, dtype=torch.bool)
    spoiled[2] = spoiled[:, 33] = True
    assert not got[spoiled].isfinite().any()
    assert torch.equal(got[~spoiled], expected[~spoiled])


def test_float32_and_bfloat16_weights_of_the_same_values_have_the_same_bits():
    weight = torch.randn(40, 70).bfloat16()
    narrow, wide = map(kernels.pack_in_four_bits, (weight, weight.float()))
    assert torch.equal(narrow.panels, wide.panels)


def test_a_processor_without_these_products_is_refused(monkeypatch):
    monkeypatch.setattr(kernels.library(), "ulskip_has_byte_products", lambda: False)
    with pytest.raises(NotImplementedError, match="AVX2"):
        kernels.pack_in_four_bits(torch.randn(3, 3))
