"""Rules of imports that import-linter cannot express."""

import subprocess
import sys
from pathlib import Path

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
    result = subprocess.run(
        [sys.executable, "-c", check], check=True, capture_output=True, text=True
    )
    assert result.stdout.split() == []
