"""The wheel contains all files that the program needs without the checkout."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SMALL = ["limit=2", "max_new_tokens=4", "speed.seconds=0"]


@pytest.mark.slow
def test_an_installed_wheel_runs_without_a_compiler(tmp_path):
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert not [name for name in archive.namelist() if "__pycache__" in name]
    assert wheel.stat().st_size < 25_000_000
    ran = subprocess.run(
        [installed(wheel, tmp_path / "venv"), "run", "task=wmt", "ratio=2.0", "--json", *SMALL],
        cwd=tmp_path,
        env={"PATH": "", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"},
        check=False,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    row = json.loads(ran.stdout)
    assert (row["strategy"], row["linear_backend_reason"]) == ("unified", "no C++ compiler")
    assert any("install a C++ compiler" in warning for warning in row["warnings"])


def installed(wheel, folder):
    """Install a wheel into a new environment that sees the packages of this one; return the
    command `ulskip`.
    """
    venv.create(folder)
    (site,) = (folder / "lib").glob("python*/site-packages")
    # Packages of a folder that a .pth file names, but not its own .pth files: no editable install.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    pip = [sys.executable, "-m", "pip", "--python", str(folder), "install"]
    options = ["--quiet", "--no-index", "--no-deps", "--ignore-installed", str(wheel)]
    subprocess.run(
        [*pip, *options], check=True, capture_output=True, env={**os.environ, "PYTHONPATH": ""}
    )
    return folder / "bin" / "ulskip"
