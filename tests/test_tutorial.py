"""Run the code of docs/get-started.md on the embedded model and with few steps."""

import re
import shlex
from pathlib import Path

import matplotlib
import pytest

from ulskip_cli.cli.app import invoke
from ulskip_cli.core.model_metadata import ASSETS

PAGE = (Path(__file__).parent.parent / "docs" / "get-started.md").read_text("utf-8")
BLOCKS = re.findall(r"```(python|bash)\n(.*?)```", PAGE, re.DOTALL)
HUB_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
FEWER = {
    "evaluate": ["speed.pairs=2", "speed.warmup=0", "speed.new_tokens=3"],
    "run": ["speed.pairs=2", "speed.warmup=0", "speed.new_tokens=3"],
    "train": ["limit=16"],
    "export": [],
}


@pytest.mark.slow
def test_the_tutorial_runs(tmp_path, monkeypatch, capsys):
    matplotlib.use("agg")
    monkeypatch.chdir(tmp_path)
    names = {}
    for language, code in BLOCKS:
        here = (
            code.replace(HUB_MODEL, str(ASSETS / "tiny"))
            .replace("limit=40", "limit=4")
            .replace("max_steps=5", "max_steps=2")
        )
        if language == "python":
            quick = ", ".join(map(repr, FEWER["evaluate"]))
            exec(here.replace('"task=wmt"', f'"task=wmt", {quick}'), names)
        else:
            for line in here.splitlines():
                _, *arguments = shlex.split(line)
                assert invoke([*arguments, *FEWER[arguments[0]]]) == 0
    told = capsys.readouterr().out
    assert "(0, 2, 4, 7, 9, 11)" in told
    assert told.count("I'm hungry.") == 2  # with all layers and with half of them
    assert "6 of 12" in told
    assert "by 6 layers" in told
    card = (tmp_path / "exported" / "README.md").read_text()
    assert names["record"].strategy == "unified"
    assert "measured speedup" in card
