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
