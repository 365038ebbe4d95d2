import pytest

from ulskip_cli.engines.torch import static_cache


@pytest.fixture(autouse=True)
def few_masked_steps(monkeypatch):
    """Short answers that need the masks of several parts of their steps."""
    monkeypatch.setattr(static_cache, "MASKED_STEPS", 3)
