"""The wheel contains all files that the program needs without the checkout."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_an_installed_wheel_plans_and_finds_its_sample(tmp_path):
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "site")
    for path in (ROOT / "configs").rglob("*.yaml"):
        assert f"ulskip_cli/configs/{path.relative_to(ROOT / 'configs')}" in names
    assert not [name for name in names if "__pycache__" in name]
    assert wheel.stat().st_size < 25_000_000
    script = (
        "import sys, ulskip_cli.cli.app as cli, ulskip_cli.core.config as config; assert 'site' in"
        " cli.__file__, cli.__file__;assert config.compose([]).task.examples();"
        " sys.exit(cli.invoke(['plan', 'ratio=2']))"
    )
    place = f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r})"
    run = [sys.executable, "-P", "-c", f"{place}; {script}"]
    told = subprocess.run(run, cwd=tmp_path, check=False, capture_output=True, text=True)
    assert (told.returncode, told.stderr) == (0, "")
    assert "6 of 12 layers" in told.stdout
