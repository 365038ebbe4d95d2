import math
import os
import subprocess
import sys

import pytest
from report_rows import (
    compared,
    not_applicable,
    small_sweep,
    sweep_row,
    timed_pairs,
    two_depths,
    write_folder,
)

FILES = {"report.md", "report.html"}
ANSWERS = {row.id: [f"sentence {i} here" for i in range(4)] for row in small_sweep()}


@pytest.fixture
def folder(tmp_path):
    rows = [*small_sweep(), not_applicable(), not_applicable("skip_decode", 3.0, 1, "failed")]
    return write_folder(tmp_path / "x", rows, ANSWERS)


@pytest.fixture
def report(ulskip, tmp_path):
    return lambda *arguments: ulskip("report", *arguments)


def test_tables_plots_and_a_page_are_written_and_shown(report, folder):
    code, out, err = report(folder, "--html")
    assert (code, err) == (0, "")
    assert "fastest at batch 1: unified 2x, 1.80x" in out and "N/A" in out
    assert f"written to {folder / 'report'}/" in out
    written = {file.name for file in (folder / "report").iterdir()}
    assert written == {*FILES, "quality.png", "quality.svg"}
    text = (folder / "report" / "report.md").read_text()
    for part in ("| 2x | early_exit | N/A |", "## Winners", "failed (skip_decode)"):
        assert part in text


@pytest.mark.parametrize("width", [80, 120])
def test_no_table_is_wider_than_the_terminal(report, folder, monkeypatch, width):
    monkeypatch.setattr("ulskip_cli.cli.result_commands.WIDTH_IN_FILE", width)
    _, out, _ = report(folder, "--compare", "paper", "--no-plots")
    lines = [line for line in out.splitlines() if not line.startswith("written to")]
    assert max(map(len, lines)) <= width and "…" not in out
    assert "21.2" in out and "one A100-80G" in " ".join(out.split())


def test_two_folders_are_compared_the_second_with_the_first(report, folder, tmp_path):
    second = write_folder(tmp_path / "y", small_sweep(unified_2=20.5), ANSWERS)
    code, out, _ = report(second, "--compare", folder, "--no-plots")
    assert code == 0 and "does not hold" in out
    assert f"## Comparison with {folder}" in (second / "report" / "report.md").read_text()
    old = write_folder(tmp_path / "old", [sweep_row(batch=1), sweep_row(target=3.0, batch=8)])
    new = write_folder(tmp_path / "new", [sweep_row(batch=8), sweep_row(target=3.0, batch=1)])
    code, _, err = report(new, "--compare", old)
    assert code == 2 and "got none" in err and str(old) in err


@pytest.mark.parametrize(
    ("new", "code", "named"),
    [
        ({"speedup": 1.8}, 0, None),
        ({"speedup": 1.75}, 0, None),  # undecided
        ({"speedup": 1.9}, 0, None),
        ({"speedup": 1.6}, 3, "unified 2x, batch 1: speed"),
        ({"bleu": 20.0}, 3, "unified 2x, batch 1: BLEU"),
    ],
)
def test_a_sure_loss_fails_a_check(report, tmp_path, new, code, named):
    def stored(name, **values):
        return write_folder(tmp_path / name, [sweep_row("full"), sweep_row(**values)])

    folders = stored("new", **new), "--compare", stored("old", speedup=1.8)
    got, out, _ = report(*folders, "--check", "--no-plots")
    assert got == code and (named is None or f"surely worse: {named}" in out)
    assert report(*folders, "--no-plots")[0] == 0


def test_a_loss_of_few_noisy_units_is_not_sure(report, tmp_path):
    def stored(name, speedup):
        seconds = [0.62 / speedup * math.exp(shift) for shift in (-0.03, 0.0, 0.03)]
        row = sweep_row(speedup=speedup, pairs=timed_pairs([0.62] * 3, seconds, decoded_tokens=31))
        return write_folder(tmp_path / name, [sweep_row("full"), row])

    # 0.2 of the logarithm is more than a normal quantile of two claims allows, but not Student's
    old = stored("old", 1.8)
    for change, code in ((-0.2, 0), (-0.3, 3)):
        new = stored(f"new{change}", 1.8 * math.exp(change))
        assert report(new, "--compare", old, "--check", "--no-plots")[0] == code


def test_warnings_of_runs_and_of_low_scores_are_kept(report, tmp_path):
    busy = "other processes used {} CPUs"
    low = {"bleu": 4.0, "vs_baseline": {"bleu": compared(4.0, 4.0, 0.1)}}
    rows = [
        sweep_row("full").replace(bleu=4.0),
        sweep_row(**low, warnings=[f"unified: {busy.format(1.5)}"]),
        sweep_row(target=3.0, warnings=[f"unified: {busy.format(0.7)}"]),
    ]
    folder = write_folder(tmp_path / "x", rows)
    code, out, _ = report(folder, "--html", "--no-plots")
    shown = " ".join(out.split())
    files = [(folder / "report" / name).read_text() for name in ("report.md", "report.html")]
    assert code == 0
    for text in (shown, *files):
        assert f"{busy.format(1.5)} (in 2 rows; numbers of the first)" in text
        assert "BLEU of 4.0" in text


def test_a_speed_of_another_depth_is_told_and_not_drawn(report, tmp_path):
    folder = write_folder(tmp_path / "x", [*small_sweep(batches=(1,)), two_depths()])
    code, out, _ = report(folder)
    shown = " ".join(out.split())
    assert code == 0 and "with a mean of 4.0 layers, and its answers ran 5.4 of 6" in shown
    text = (folder / "report" / "report.md").read_text()
    assert "| skip_decode | 2 | 5.4/6 | 4.0/6 |" in text
    assert "skip_decode" not in (folder / "report" / "quality.svg").read_text()


def test_a_report_loads_no_torch_and_other_commands_no_pandas(folder):
    script = (
        "import sys; from ulskip_cli.cli.app import invoke;"
        "invoke(['--help']); assert 'pandas' not in sys.modules;"
        f"code = invoke(['report', {str(folder)!r}, '--html', '--compare', {str(folder)!r}]);"
        "libraries = {'torch', 'transformers'};"
        "sys.exit(code or ' '.join(libraries & {*sys.modules}) or 0)"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "")


def test_a_gate_above_1_is_refused(report, folder):
    code, _, err = report(folder, "--gate", "2")
    assert (code, "--gate" in err, err.count("\n")) == (2, True, 1)


def test_without_a_folder_the_newest_results_are_reported(report, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for age, name in enumerate(("own", "shipped")):
        folder = write_folder(tmp_path / "results" / name, small_sweep())
        os.utime(folder / "runs.jsonl", (10 - age, 10 - age))
    code, out, _ = report("--no-plots")
    assert code == 0 and "written to results/own/report/" in out
