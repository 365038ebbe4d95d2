import pytest

from ulskip_cli.engines.torch import kernels, static_cache


@pytest.fixture(autouse=True)
def few_masked_steps(monkeypatch):
    """Make the masks of three steps at a time, so that short answers need several parts."""
    monkeypatch.setattr(static_cache, "MASKED_STEPS", 3)


@pytest.fixture(scope="module")
def needs_kernels():
    """Skip the tests of a machine without kernels."""
    if reason := kernels.load_kernels():
        pytest.skip(f"no kernels: {reason}")
