import time
from types import SimpleNamespace

from report_rows import not_applicable, sweep_row

from ulskip_cli.cli import progress_bars
from ulskip_cli.cli.progress_bars import ProgressBars, SweepDisplay
from ulskip_cli.core.config import compose
from ulskip_cli.experiments.results import ResultsFolder
from ulskip_cli.experiments.statistics import sentence
from ulskip_cli.report import tables


def test_a_line_of_a_phase_has_its_step_note_and_time_left(capsys):
    with ProgressBars() as bars:
        report = bars.phase("train, resumed at step 100", 1100)
        for done in (100, 101, 160):
            report(done, f"loss {done / 100}")
        line = bars.line()
        report(1100)
        assert bars.line() == ""
    assert line.startswith("train, resumed at step 100: 160 of 1100, loss 1.6, ")
    assert line.endswith(" left")


def test_a_phase_that_reports_nothing_writes_lines_too(monkeypatch, capsys):
    monkeypatch.setattr(progress_bars, "LINE_SECONDS", 0.03)
    with ProgressBars() as bars:
        report = bars.phase("own answers", 4)
        report(0, "12 tokens")
        time.sleep(0.15)
        report(4)
        time.sleep(0.15)
        bars.phase("warm up")
        bars.phase("warm up")
        time.sleep(0.15)
    lines = capsys.readouterr().err.splitlines()
    assert "4 of 4" not in " ".join(lines) and lines.count("warm up") == 1
    assert {"own answers: 0 of 4, 12 tokens", "warm up: 0:00:00"} <= set(lines)


def show_sweep(tmp_path):
    config = compose([f"results_dir={tmp_path}"])
    jobs = [SimpleNamespace(id=name, label=f"unified {name}", config=config) for name in "abc"]
    ResultsFolder.of(config).append(sweep_row())
    with SweepDisplay(jobs) as display:
        display.job_settled(jobs[0], sweep_row(), is_new=False)
        display.phase("unified: generate", 4)(4, "9 tok/s")
        display.job_settled(jobs[1], sweep_row(bleu=20.0), is_new=True)
        display.note("worker 1 died")
        display.job_settled(jobs[2], not_applicable(status="failed"), is_new=True)


def test_without_a_terminal_a_sweep_is_a_line_for_each_event(tmp_path, monkeypatch, capsys):
    written = []
    monkeypatch.setattr(tables, "write_tables", written.append)
    show_sweep(tmp_path)
    assert capsys.readouterr().err.splitlines() == [
        "[2/3] unified: generate (4)",
        f"[2/3] unified b: {sentence(sweep_row(bleu=20.0))} (less than a minute left for 1 point)",
        "worker 1 died",
        f"[3/3] unified c: {sentence(not_applicable(status='failed'))}",
    ]
    assert len(written) == 2  # with the first new row and at the end, but not with every row


def test_on_a_terminal_a_phase_is_a_bar_until_a_text_is_printed(monkeypatch, capsys):
    for name, value in (("FORCE_COLOR", "1"), ("TTY_COMPATIBLE", "1"), ("COLUMNS", "120")):
        monkeypatch.setenv(name, value)
    with ProgressBars() as bars:
        bars.phase("read", 4)(4, "9 tok/s")
        bars.bars.refresh()
        bars.pause()
        shown = capsys.readouterr().err
        assert not bars.bars.live.is_started
        bars.phase("write")
    assert all(text in shown for text in ("read", "4/4", "9 tok/s"))
    err = capsys.readouterr().err
    assert "write" in err and "read" not in err
