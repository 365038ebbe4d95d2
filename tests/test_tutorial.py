"""Run the code of docs/get-started.md, with few steps."""

import re
import shlex
from pathlib import Path

import pytest

from ulskip_cli.cli.app import invoke

PAGE = (Path(__file__).parent.parent / "docs" / "get-started.md").read_text("utf-8")
BLOCKS = re.findall(r"```(python|bash)\n(.*?)```", PAGE, re.DOTALL)
QUICK = ["speed.seconds=0", "speed.new_tokens=3", "batch_size=2"]
FEWER = {"generate": [], "run": QUICK, "train": ["limit=16"], "export": []}


@pytest.mark.slow
def test_the_tutorial_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {}
    for language, block in BLOCKS:
        code = block.replace("limit=40", "limit=4").replace("max_steps=20", "max_steps=2")
        if language == "python":
            exec(code.replace('"limit=4"', ", ".join(map(repr, ["limit=4", *QUICK]))), names)
        else:
            for line in code.splitlines():
                _, *arguments = shlex.split(line)
                assert invoke([*arguments, *FEWER[arguments[0]]]) == 0
    told = capsys.readouterr().out
    assert "(0, 2, 4, 7, 9, 11)" in told
    assert told.count("""[" I'm hungry.", ' Where is the station?']""") == 2
    assert "6 of 12" in told
    assert "by 6 layers" in told
    assert names["record"].strategy == "unified"
    assert "measured speedup" in (tmp_path / "exported" / "README.md").read_text()
