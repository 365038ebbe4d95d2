import csv
import io
import json
import subprocess
import sys

import pytest
from report_rows import not_applicable, small_sweep, write_folder

from ulskip_cli.cli.app import invoke

FILES = ["report.md", "long.csv", "long.tex", "table4.csv", "table4.tex"]
ANSWERS = {row.id: [f"sentence {i} here" for i in range(4)] for row in small_sweep()}


@pytest.fixture
def folder(tmp_path):
    rows = [*small_sweep(), not_applicable(), not_applicable("skip_decode", 3.0, 1, "failed")]
    return write_folder(tmp_path / "x", rows, ANSWERS)


@pytest.fixture
def report(capsys, tmp_path):
    def call(*arguments):
        code = invoke(["report", *map(str, arguments), f"--results-dir={tmp_path}"])
        out, err = capsys.readouterr()
        return code, out, err

    return call


def test_tables_and_pictures_are_written_and_shown(report, folder):
    code, out, err = report(folder)
    assert (code, err) == (0, "")
    assert "fastest at batch 1: unified 2x, 1.80x" in out
    assert "N/A" in out
    assert f"written to {folder / 'report'}/" in out
    written = {file.name for file in (folder / "report").iterdir()}
    assert {*FILES, "quality.png", "quality.svg", "layers.svg"} <= written
    text = (folder / "report" / "report.md").read_text()
    for part in (
        "| 2x | early_exit | N/A |",
        "## Winners",
        "## All points",
        "failed (skip_decode)",
    ):
        assert part in text


@pytest.mark.parametrize("width", ["80", "120"])
@pytest.mark.parametrize("layout", ["table4", "long"])
def test_no_table_is_wider_than_the_terminal(report, folder, monkeypatch, width, layout):
    monkeypatch.setattr("ulskip_cli.report.build.NO_TERMINAL", int(width))
    _, out, _ = report(folder, "--layout", layout, "--compare", "paper", "--no-plots")
    lines = [line for line in out.splitlines() if not line.startswith("written to")]
    assert max(map(len, lines)) <= int(width)
    assert "…" not in out


def test_a_format_is_printed_and_nothing_written(report, folder):
    code, out, _ = report(folder, "--format", "csv")
    lines = list(csv.DictReader(io.StringIO(out)))
    assert code == 0
    assert [line["approach"] for line in lines][:2] == ["full", "early_exit"]
    assert report(folder, "--format", "markdown")[1].startswith("| target | approach |")
    assert report(folder, "--format", "latex", "--layout", "long")[1].startswith(r"\begin{table}")
    assert "kept_layers" in report(folder, "--format", "csv", "--layout", "long")[1]
    assert not (folder / "report").exists()


def test_two_folders_are_compared_the_second_with_the_first(report, folder, tmp_path):
    other = write_folder(tmp_path / "y", small_sweep(unified_2=20.5), ANSWERS)
    code, out, _ = report("--compare", folder, other, "--json", "--no-plots")
    told = json.loads(out)
    assert code == 0
    assert told["folders"] == [str(other)]
    assert {"old_bleu", "new_bleu", "quality", "speedup_ratio"} <= set(told["comparison"][0])
    pair = next(pair for pair in told["comparison"] if pair["new_id"] == "unified-2-1")
    assert (pair["keeps_quality"], pair["is_faster"], pair["as_before"]) == (
        "does not hold",
        "holds",
        "holds",
    )
    _, out, _ = report(other, "--compare", folder, "--no-plots")
    assert "does not hold" in out
    assert f"## Comparison with {folder}" in (other / "report" / "report.md").read_text()


def test_the_paper_stands_beside_ours(report, folder):
    _, out, _ = report(folder, "--compare", "paper", "--no-plots")
    assert "21.23" in out
    assert "one A100-80G" in " ".join(out.split())
    told = json.loads(report(folder, "--compare", "paper", "--no-plots", "--json")[1])
    assert any(line.get("paper BLEU") == "21.23" for line in told["paper"][0])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nowhere"], "got 'nowhere'"),
        (["--gate", "2"], "--gate"),
        (["--tolerance", "1"], "--tolerance"),
        (["--examples", "-1"], "--examples"),
        (["--format", "latx"], "did you mean 'latex'"),
        (["--layout", "wide"], "unknown layout"),
        (["--compare", "nowhere"], "got 'nowhere'"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(report, folder, arguments, told):
    code, out, err = report(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("ulskip: ")
    assert err.count("\n") == 1
    assert told in err


def test_a_folder_for_files_that_is_none_is_said(report, folder):
    code, _, err = report(folder, "--output", str(folder / "runs.jsonl"))
    assert (code, err.count("\n")) == (2, 1)
    assert "--output=FOLDER" in err


def test_folders_without_a_common_point_are_not_compared(report, tmp_path):
    one, two = small_sweep()[2:4], small_sweep()[4:6]  # unified at 2x and at 3x, batches 1 and 8
    old, new = (
        write_folder(tmp_path / name, [*rows])
        for name, rows in (("old", [one[0], two[1]]), ("new", [one[1], two[0]]))
    )
    code, _, err = report(new, "--compare", old, "--no-plots")
    assert code == 2
    assert "got none" in err and str(old) in err


def test_torch_stays_out(folder):
    script = (
        "import sys; from ulskip_cli.cli.app import invoke;"
        f"code = invoke(['report', {str(folder)!r}, '--html', '--compare', {str(folder)!r}]);"
        "sys.exit(code or [name for name in ('torch', 'transformers') if name in sys.modules] or 0)"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], check=False, capture_output=True, text=True
    )
    assert (run.returncode, run.stderr) == (0, "")


@pytest.mark.parametrize("arguments", [["--help"], ["plan", "ratio=2"]])
def test_commands_without_tables_do_not_load_pandas(arguments):
    code = (
        f"import sys; from ulskip_cli.cli.app import invoke; invoke({arguments!r});"
        " sys.exit('pandas' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
