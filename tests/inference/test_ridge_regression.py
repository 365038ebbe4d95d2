import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ulskip_cli.inference.ridge_regression import PatchOptions, RidgeRegression

seeds = st.integers(0, 10_000)


def drawn(seed, count=40, inputs=5, outputs=4):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, inputs, generator=generator, dtype=torch.float64)
    d = torch.randn(count, outputs, generator=generator, dtype=torch.float64)
    return x, d + x[:, :1] + 3, torch.rand(count, generator=generator, dtype=torch.float64) + 0.1


def solved(x, d, weights=None, parts=1, **options):
    """Solve a regression whose positions arrive in several parts."""
    sums = RidgeRegression.empty(x.shape[1], d.shape[1])
    for at in torch.arange(len(x)).chunk(parts):
        sums.add(x[at], d[at], None if weights is None else weights[at])
    return sums.solve(PatchOptions(**{"kind": "full", "ridge": 1e-14, **options}))


def least_squares(x, d, weights=None, bias=True):
    """Solve by an independent routine; return the matrix [inputs, outputs] and the bias."""
    design = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1) if bias else x
    scale = torch.ones(len(x), 1, dtype=x.dtype) if weights is None else weights.sqrt()[:, None]
    found = torch.linalg.lstsq(design * scale, d * scale).solution
    return (found[:-1], found[-1]) if bias else (found, None)


@given(seeds, st.integers(1, 7))
def test_without_a_ridge_it_is_least_squares(seed, parts):
    x, d, _ = drawn(seed)
    matrix, bias = least_squares(x, d)
    got = solved(x, d, parts=parts)
    torch.testing.assert_close((got["weight"], got["bias"]), (matrix, bias), rtol=1e-6, atol=1e-8)


@given(seeds)
def test_without_centering_there_is_no_bias(seed):
    x, d, _ = drawn(seed)
    got = solved(x, d, centered=False)
    assert got.keys() == {"weight"}
    torch.testing.assert_close(got["weight"], least_squares(x, d, bias=False)[0], rtol=1e-6, atol=1e-8)


@given(seeds)
def test_weights_act_as_in_weighted_least_squares(seed):
    x, d, weights = drawn(seed)
    matrix, bias = least_squares(x, d, weights)
    got = solved(x, d, weights, parts=3)
    torch.testing.assert_close((got["weight"], got["bias"]), (matrix, bias), rtol=1e-6, atol=1e-8)
    twice, ones = solved(torch.cat([x, x[:9]]), torch.cat([d, d[:9]])), torch.ones(len(x), dtype=x.dtype)
    ones[:9] = 2
    torch.testing.assert_close(solved(x, d, ones), twice, rtol=1e-6, atol=1e-8)


@given(seeds, st.floats(0.01, 10))
def test_the_ridge_is_relative_to_the_mean_variance_of_the_inputs(seed, ridge):
    x, d, _ = drawn(seed)
    centered, target = x - x.mean(0), d - d.mean(0)
    penalty = ridge * centered.pow(2).sum() / x.shape[1]
    extra = torch.cat([centered, penalty.sqrt() * torch.eye(x.shape[1], dtype=x.dtype)])
    expected = torch.linalg.lstsq(extra, torch.cat([target, torch.zeros(x.shape[1], d.shape[1], dtype=x.dtype)])).solution
    got = solved(x, d, ridge=ridge)
    torch.testing.assert_close(got["weight"], expected, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(x.mean(0) @ got["weight"] + got["bias"], d.mean(0))  # the residuals have a mean of 0
    scaled = solved(100 * x, d, ridge=ridge)
    torch.testing.assert_close(100 * scaled["weight"], got["weight"], rtol=1e-6, atol=1e-8)


@given(seeds)
def test_a_bias_alone_is_the_mean(seed):
    x, d, weights = drawn(seed)
    torch.testing.assert_close(solved(x, d, kind="bias"), {"bias": d.mean(0)})
    torch.testing.assert_close(solved(x, d, weights, kind="bias"), {"bias": (weights[:, None] * d).sum(0) / weights.sum()})


@given(seeds)
def test_low_rank_equals_full_at_full_rank(seed):
    x, d, weights = drawn(seed)
    full, low = (solved(x, d, weights, kind=kind, rank=4) for kind in ("full", "low_rank"))
    torch.testing.assert_close(low["down"] @ low["up"], full["weight"], rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(low["bias"], full["bias"], rtol=1e-6, atol=1e-8)


@given(seeds, st.integers(1, 3))
def test_low_rank_has_the_smallest_error_of_its_rank(seed, rank):
    x, d, _ = drawn(seed)
    low = solved(x, d, kind="low_rank", rank=rank)
    assert low["down"].shape == (5, rank) and low["up"].shape == (rank, 4)
    fitted = (x - x.mean(0)) @ solved(x, d)["weight"]
    error = (fitted - (x - x.mean(0)) @ low["down"] @ low["up"]).pow(2).sum()
    torch.testing.assert_close(error, torch.linalg.svdvals(fitted)[rank:].pow(2).sum())  # Eckart-Young


@pytest.mark.parametrize("kind", ["bias", "low_rank", "full"])
def test_a_single_position_gives_finite_patches(kind):
    x, d, _ = drawn(0, count=1)
    got = solved(x, d, kind=kind, rank=2, ridge=0.1)
    assert all(torch.isfinite(part).all() for part in got.values())
    matrix = got.get("weight", got["down"] @ got["up"] if "down" in got else torch.zeros(5, 4, dtype=x.dtype))
    torch.testing.assert_close(x @ matrix + got["bias"], d)
