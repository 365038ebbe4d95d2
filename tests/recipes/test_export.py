import subprocess
import sys

import pytest
from recipe import RECIPES, load_recipe

check = load_recipe("export/check.py")


@pytest.mark.slow
def test_an_export_answers_without_ulskip_as_it_does_here(tmp_path, monkeypatch):
    script = tmp_path / "plain.py"
    text = (RECIPES / "export" / "plain.py").read_text()
    lines = [line for line in text.splitlines() if "ulskip is installed" not in line]  # as it is here
    assert len(lines) == len(text.splitlines()) - 1
    script.write_text("\n".join(lines))
    monkeypatch.setattr(check, "PLAIN", script)
    for layers in ("kept", "all"):
        cells = check.compare("tiny", layers, sys.executable, tmp_path, 3, 6)
        assert cells[:5] == ["tiny", "float32", "6/12", layers, "3"]
        assert cells[6] == "0/3"
    assert "| tiny | float32 | 6/12 | all |" in check.page([cells])


@pytest.mark.slow
def test_plain_refuses_an_environment_with_ulskip(tmp_path):
    run = [sys.executable, str(RECIPES / "export" / "plain.py"), "a", "b", "c"]
    told = subprocess.run(run, cwd=RECIPES.parent, capture_output=True, text=True, env={"PYTHONPATH": str(RECIPES.parent)})
    assert "ulskip is installed" in told.stderr
