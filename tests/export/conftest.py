import pytest


@pytest.fixture(autouse=True)
def no_results(tmp_path_factory, monkeypatch):
    """Export in an empty folder, so that no rows of the project are read for the model card."""
    monkeypatch.chdir(tmp_path_factory.mktemp("empty"))
