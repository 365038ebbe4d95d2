"""The files around the package agree with it, and the wheel contains all that it needs."""

import json
import os
import re
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
import yaml

from ulskip_cli.core.environment import __version__

ROOT = Path(__file__).parent.parent
DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8")


def test_the_citation_has_the_version_of_the_package():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert (citation["title"], citation["version"]) == ("ulskip", __version__)


def test_the_image_copies_files_that_exist_and_are_not_ignored():
    copied = re.findall(r"^COPY (.+)", DOCKERFILE, re.MULTILINE)
    sources = {name for line in copied for name in line.split()[:-1]}
    assert {"ulskip_cli", "configs", "requirements.lock"} <= sources
    assert [name for name in sources if not (ROOT / name).exists()] == []
    ignored, *exceptions = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    assert ignored == "*"
    assert {f"!{name}" for name in sources} <= set(exceptions)


SMALL = ["limit=2", "max_new_tokens=4", "speed.seconds=0"]


@pytest.mark.slow
def test_an_installed_wheel_runs_without_a_compiler(tmp_path):
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert not [name for name in archive.namelist() if "__pycache__" in name]
    assert wheel.stat().st_size < 25_000_000
    words = [installed(wheel, tmp_path / "venv"), "run", "task=wmt", "ratio=2.0", "--json", *SMALL]
    environment = {"PATH": "", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    row = json.loads(ran.stdout)
    assert (row["strategy"], row["linear_backend_reason"]) == ("unified", "no C++ compiler")
    assert any("install a C++ compiler" in warning for warning in row["warnings"])


def installed(wheel, folder):
    """Install a wheel beside the packages of this environment; return its command `ulskip`."""
    venv.create(folder)
    (site,) = (folder / "lib").glob("python*/site-packages")
    # Packages of a folder that a .pth file names, but not its own .pth files: no editable install.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    pip = [sys.executable, "-m", "pip", "--python", str(folder), "install"]
    options = ["--quiet", "--no-index", "--no-deps", "--ignore-installed", str(wheel)]
    environment = {**os.environ, "PYTHONPATH": ""}
    subprocess.run([*pip, *options], check=True, capture_output=True, env=environment)
    return folder / "bin" / "ulskip"


PACKAGE = Path(__file__).parent.parent / "ulskip_cli"
WITHOUT_TORCH = ("core", "strategies", "tasks", "report", "cli")


def modules(*packages):
    for package in packages:
        for path in sorted((PACKAGE / package).rglob("*.py")):
            parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_libraries_say_nothing_of_kernels_for_other_devices():
    check = "import logging, ulskip_cli; logging.getLogger('torchao').warning('Failed to load')"
    result = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")


def test_planning_tasks_reports_and_the_command_line_load_no_torch():
    imports = "".join(f"import {name}\n" for name in modules(*WITHOUT_TORCH))
    check = f"{imports}import sys\nprint(*({{'torch', 'transformers'}} & set(sys.modules)))"
    loaded = subprocess.check_output([sys.executable, "-c", check], text=True)
    assert loaded.split() == []
