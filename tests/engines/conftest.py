import pytest

from ulskip_cli.engines.torch import static_cache


@pytest.fixture(autouse=True)
def few_masked_steps(monkeypatch):
    """Make the masks of three steps at a time, so that short answers need several parts."""
    monkeypatch.setattr(static_cache, "MASKED_STEPS", 3)
