import json
from types import SimpleNamespace

import pytest
from ulskip_cli.cli.sweep_display import SweepDisplay

from ulskip_cli.core.config import compose
from ulskip_cli.experiments.record import read


def record(speedup, bleu, **keys):
    interval = {"measured_speedup_low": speedup, "measured_speedup_high": speedup}
    return read(
        json.dumps(
            {
                "id": "a",
                "strategy": "s",
                "batch_size": 1,
                "measured_speedup": speedup,
                **interval,
                "bleu": bleu,
                **keys,
            }
        )
    )


CONFIG = compose([])
JOBS = [SimpleNamespace(id=name, label=f"unified {name}", config=CONFIG) for name in "abc"]


def go_through(board):
    with board:
        board.job_settled(JOBS[0], record(1.2, 30.0), ran=False)
        board.job_started(JOBS[1])
        board.phase("unified: generate", 4)(4, "9 tok/s")
        board.phase("write", 0)(1)
        board.job_settled(JOBS[1], record(1.5, 20.0, wall_seconds=2.0), ran=True)
        board.note("worker 1 died")
        board.job_settled(JOBS[2], record(None, None, status="failed", reason="no"), ran=True)


def test_without_a_terminal_what_happens_is_a_line(capsys):
    go_through(SweepDisplay(JOBS, lambda folder: None))
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "[2/3] unified: generate (4)",
        "[2/3] unified b: done, 2.0 s, 1.50x, BLEU 20.0",
        "worker 1 died",
        "[3/3] unified c: failed: no",
    ]


@pytest.mark.parametrize("state", ["3 of 3 settled (2 done, 1 failed)", "worker 1 died"])
def test_a_terminal_has_lines_that_stay(state, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("COLUMNS", "120")
    go_through(SweepDisplay(JOBS, lambda folder: None))
    assert state in capsys.readouterr().err


def test_tables_are_written_when_rows_come_but_not_at_every_row(monkeypatch):
    written, clock, folder = [], [100.0], SimpleNamespace(records=lambda: ["a row"])
    monkeypatch.setattr("ulskip_cli.cli.sweep_display.time.monotonic", lambda: clock[0])
    board = SweepDisplay(JOBS, written.append)
    for clock[0] in (100.0, 101.0, 200.0):
        board.rows_changed(folder)
    assert written == [folder, folder]
