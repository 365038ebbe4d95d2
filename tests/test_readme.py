"""Run the commands of the README, and compare the tables of README and docs/ with their files."""

import re
import shlex
from pathlib import Path

import pytest
import readme

from ulskip_cli.cli.app import invoke

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
COMMANDS = [
    shlex.split(line, comments=True)[1:]
    for block in BLOCKS
    for line in block.splitlines()
    if line.startswith("ulskip ")
]
QUICK = [
    "limit=3",
    "decoding.max_new_tokens=8",
    "speed.pairs=2",
    "speed.warmup=0",
    "speed.new_tokens=3",
]
FEW = [
    "choice_examples=4",
    "calibration.examples=8",
    "candidates=['strategy=unified','strategy=top_skip']",
]


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_works(command, tmp_path, monkeypatch, capsys):
    if "model=smollm2-135m" in command:
        from ulskip_cli.core.errors import UsageError
        from ulskip_cli.inference.smollm2_wheel import _wheel_folder

        try:
            _wheel_folder()
        except UsageError as error:
            pytest.skip(str(error))
    monkeypatch.chdir(tmp_path)
    runs = command[0] in ("run", "sweep", "bench", "tune")
    keep = [part for part in command if not part.startswith("limit=")]
    if command[0] in ("score", "report"):
        assert invoke(["run", *QUICK]) == 0
        capsys.readouterr()
    quick = QUICK[1:] if command[0] == "bench" else QUICK  # a bench has no examples to limit
    quick = [*quick, *FEW] if command[0] == "tune" else quick
    assert invoke([*keep, *quick] if runs else command) == 0
    assert capsys.readouterr().out
    assert (tmp_path / "results").is_dir() == (runs or command[0] in ("score", "report"))


@pytest.mark.parametrize("page", readme.pages(), ids=lambda page: page.name)
def test_tables_equal_their_files(page):
    text = page.read_text("utf-8")
    assert readme.fill_tables(text) == text
    assert len(readme.BLOCK.findall(text)) == text.count("<!-- table:")


def test_a_marker_selects_columns_and_keeps_the_provenance():
    text = "| a | b | c |\n| --- | --- | ---: |\n| 1 | 2 | 3 |\n\na note\n\nulskip 0"
    assert readme.select(text, ["c", "a"]) == "| c | a |\n| ---: | --- |\n| 3 | 1 |\n\nulskip 0"
    with pytest.raises(ValueError, match="'d'"):
        readme.select(text, ["d"])
