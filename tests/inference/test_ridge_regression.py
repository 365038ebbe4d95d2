import torch
from hypothesis import given
from hypothesis import strategies as st

from ulskip_cli.inference.patch_fit import solve_ridge

seeds = st.integers(0, 10_000)


def drawn(seed, count=40, inputs=5, outputs=4):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, inputs, generator=generator, dtype=torch.float64)
    d = torch.randn(count, outputs, generator=generator, dtype=torch.float64)
    return x, d + x[:, :1] + 3


def solved(x, d, parts=1, has_bias=True, ridge=1e-14):
    """Solve a regression whose positions arrive in several parts."""
    return solve_ridge(zip(x.chunk(parts), d.chunk(parts), strict=True), ridge, has_bias)


@given(seeds, st.integers(1, 7), st.booleans())
def test_without_a_ridge_it_is_least_squares(seed, parts, has_bias):
    x, d = drawn(seed)
    design = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1) if has_bias else x
    expected = torch.linalg.lstsq(design, d).solution
    got = solved(x, d, parts, has_bias)
    torch.testing.assert_close(got.pop("weight"), expected[:5], rtol=1e-6, atol=1e-8)
    assert got.keys() == ({"bias"} if has_bias else set())
    for bias in got.values():
        torch.testing.assert_close(bias, expected[5], rtol=1e-6, atol=1e-8)


@given(seeds, st.floats(0.01, 10))
def test_the_ridge_is_relative_to_the_mean_variance_of_the_inputs(seed, ridge):
    x, d = drawn(seed)
    centered, target = x - x.mean(0), d - d.mean(0)
    penalty = ridge * centered.pow(2).sum() / x.shape[1]
    eye, zeros = torch.eye(x.shape[1], dtype=x.dtype), torch.zeros(x.shape[1], d.shape[1])
    extra = torch.cat([centered, penalty.sqrt() * eye]), torch.cat([target, zeros.to(x.dtype)])
    got = solved(x, d, ridge=ridge)
    expected = torch.linalg.lstsq(*extra).solution
    torch.testing.assert_close(got["weight"], expected, rtol=1e-6, atol=1e-8)
    # the residuals have a mean of 0
    torch.testing.assert_close(x.mean(0) @ got["weight"] + got["bias"], d.mean(0))


def test_a_single_position_gives_finite_patches():
    x, d = drawn(0, count=1)
    got = solved(x, d, ridge=0.1)
    assert all(torch.isfinite(part).all() for part in got.values())
    torch.testing.assert_close(x @ got["weight"] + got["bias"], d)
