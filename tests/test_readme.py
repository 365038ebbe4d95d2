"""The commands of README run, and its tables equal the files that they come from."""

import re
import shlex
import sys
from pathlib import Path

import pytest

from ulskip_cli.cli.app import invoke

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
COMMANDS = [
    shlex.split(line, comments=True)[1:] for block in BLOCKS for line in block.splitlines() if line.startswith("ulskip ")
]
QUICK = ["limit=3", "decoding.max_new_tokens=8", "speed.pairs=2", "speed.warmup=0", "speed.new_tokens=3"]


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_works(command, tmp_path, monkeypatch, capsys):
    if {"model=smollm2-135m", "task=cnn_dm"} & set(command):
        from ulskip_cli.core.errors import UsageError
        from ulskip_cli.inference.smollm2_wheel import _wheel_folder

        try:
            _wheel_folder()
        except UsageError as error:
            pytest.skip(str(error))
    monkeypatch.chdir(tmp_path)
    runs = command[0] in ("run", "sweep", "bench")
    keep = [part for part in command if not part.startswith("limit=")]
    if command[0] in ("score", "report"):
        assert invoke(["run", *QUICK]) == 0
        capsys.readouterr()
    less = ["ratio=2", "batch_size=1,2"] if command == ["sweep"] else []
    if "experiment=baselines" in command:
        less = ["ratio=2", "batch_size=1", "strategy=full,unified,search", "calibration.examples=2"]
    if "task=cnn_dm" in command:
        less = ["task.max_article_words=50"]
    assert invoke([*keep, *QUICK, *less] if runs else command) == 0
    assert capsys.readouterr().out
    writes = "--dry-run" not in command and (runs or command[0] in ("score", "report"))
    assert (tmp_path / "results").is_dir() == writes


def test_the_first_commands_are_targets():
    targets = (ROOT / "Makefile").read_text()
    first = re.findall(r"^make (\S+)", BLOCKS[0], re.MULTILINE)
    assert first == ["demo", "check"]
    for target in first:
        assert re.search(rf"^{target}:.*## ", targets, re.MULTILINE)
    assert "ulskip run task=wmt ratio=2.0" in targets


def test_tables_are_those_of_their_files(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import readme

    assert readme.fill_tables(README) == README
    assert len(readme.BLOCK.findall(README)) == 4
    del sys.modules["readme"]
