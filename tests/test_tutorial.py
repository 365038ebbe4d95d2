"""Run the code of docs/get-started.md, and the strategy of docs/your-own.md, with few steps."""

import json
import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest

from ulskip_cli.cli.app import invoke

DOCS = Path(__file__).parent.parent / "docs"
QUICK = ["speed.seconds=0", "speed.new_tokens=3", "batch_size=2"]
FEWER = {"generate": [], "run": QUICK, "train": ["limit=16"], "export": []}


def blocks(text):
    """Return the language and the code of each block of a page."""
    return re.findall(r"```(python|bash|yaml)\n(.*?)```", text, re.DOTALL)


@pytest.mark.slow
def test_the_tutorial_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {}
    for language, block in blocks((DOCS / "get-started.md").read_text("utf-8")):
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
    assert "kept layers | 0, 2, 4, 7, 9, 11" in (tmp_path / "exported" / "README.md").read_text()


def test_the_strategy_of_a_user_runs(tmp_path, monkeypatch, ulskip):
    page = (DOCS / "your-own.md").read_text("utf-8")
    code = dict(blocks(page.partition("## Strategy\n")[2]))
    (tmp_path / "DIR" / "strategy").mkdir(parents=True)
    (tmp_path / "DIR" / "strategy" / "d3.yaml").write_text(code["yaml"])
    (tmp_path / "d3.py").write_text(code["python"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    variable, program, *arguments = shlex.split(code["bash"])
    assert (variable, program) == ("PYTHONPATH=.", "ulskip")
    limits = ["limit=2", "max_new_tokens=32", "speed.seconds=0"]
    status, out, err = ulskip(*arguments, *limits, "--json")
    assert status == 0, err
    row = json.loads(out.splitlines()[-1])
    assert row["config"]["strategy"] == {"name": "d3", "_target_": "d3.D3", "last": 3}
    stages = [row["kept_layers"], *(stage["kept_layers"] for stage in row["later_stages"])]
    assert len(stages) > 3
    assert all(kept[-3:] == [9, 10, 11] and kept[0] == 0 for kept in stages)
    assert all(set(later) < set(kept) for kept, later in pairwise(stages))
    assert row["target_kept_layers"] == 6 and row["layer_ratio"] == pytest.approx(2, abs=0.1)
