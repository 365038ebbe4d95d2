from ulskip_cli.cli import progress_bars
from ulskip_cli.cli.progress_bars import ProgressBars


def test_without_a_terminal_each_phase_is_one_line(capsys):
    with ProgressBars() as bars:
        bars.point(1, 3)
        step = bars.phase("unified: generate", 4)
        step(2)
        bars.phase("write", 0)(1)
        bars.phase("unified: decode loss", 4)
    out = capsys.readouterr()
    assert out.out == ""
    assert out.err.splitlines() == ["[1/3] unified: generate (4)", "[1/3] unified: decode loss (4)"]


def test_tokens_per_second_stand_beside_the_bar(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("COLUMNS", "120")
    with ProgressBars() as bars:
        step = bars.phase("unified: generate", 4)
        step(1, "88 tok/s")
        step(4, "99 tok/s")
    assert "99 tok/s" in capsys.readouterr().err


def test_a_long_phase_writes_a_line_with_step_note_rate_and_time_left_every_so_often(
    monkeypatch, capsys
):
    now = 0.0
    monkeypatch.setattr(progress_bars.time, "monotonic", lambda: now)
    with ProgressBars() as bars:
        step = bars.phase("train, resumed at step 100", 1100)
        step(100)
        for done in range(101, 400):
            now += 0.5
            step(done, f"loss {done / 100}")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "train, resumed at step 100 (1100)"
    assert len(lines) == 5  # 150 seconds with a line every 30
    assert "160 of 1100, loss 1.6, 2/s, 7:50 left" in lines[1]


def test_a_short_phase_writes_no_further_line(capsys):
    with ProgressBars() as bars:
        step = bars.phase("train", 100)
        for done in range(101):
            step(done)
    assert capsys.readouterr().err.splitlines() == ["train (100)"]
