"""Tests of the package as a whole."""

import subprocess
import sys


def test_importing_tasks_loads_neither_torch_nor_transformers():
    script = (
        "import sys, ulskip_cli.tasks.cnn_dm, ulskip_cli.tasks.encoding, ulskip_cli.tasks.jsonl,"
        " ulskip_cli.tasks.wmt;print([name for name in ('torch', 'transformers', 'datasets',"
        " 'nltk') if name in sys.modules])"
    )
    process = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert process.stdout.strip() == "[]"
