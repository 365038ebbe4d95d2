import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_rows import configured, not_applicable, small_sweep, sweep_row

from ulskip_cli.report import plots
from ulskip_cli.report.plots import pareto_front, save_quality
from ulskip_cli.report.rows import Group, grouped


def test_a_sweep_is_drawn_with_front_and_gate(tmp_path):
    png, svg = save_quality(grouped([*small_sweep(), not_applicable()]), tmp_path / "quality")
    assert png.read_bytes().startswith(b"\x89PNG")
    for text in ("unified", "Pareto front", "quality gate: 90% of full", "BLEU", "2"):
        assert f">{text}</text>" in svg.read_text("utf-8")


def test_rows_without_quality_are_not_drawn(tmp_path):
    bare = sweep_row(bleu=None, chrf=None, decode_loss=None)
    for rows in ([not_applicable()], [bare], []):
        assert save_quality(grouped(rows), tmp_path / "quality") == []
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["measured", "predicted"])
def test_quality_is_drawn_over_the_measured_speedup_or_the_predicted_one(tmp_path, kind):
    ends = ("measured_speedup", "measured_speedup_low", "measured_speedup_high")
    row = sweep_row(**dict.fromkeys(ends)) if kind == "predicted" else sweep_row()
    custom = configured(row.replace(id="c"), strategy={"name": "custom", "layers": [0, 2, 5]})
    rows = [sweep_row("full"), row, custom]
    png, svg = save_quality([Group("a title", rows)], tmp_path / "plots" / "quality")
    assert png.read_bytes().startswith(b"\x89PNG")
    axis = f"{kind} decode speedup at batch size 1 (numbers: ratio)"
    for text in ("custom", axis, "a title", "3 layers"):
        assert f">{text}</text>" in svg.read_text("utf-8")


def test_a_strategy_without_an_entry_has_a_colour_of_its_own():
    names = [*plots.COLOURS, *(f"mine_{i}" for i in range(50)), "unified + full patch"]
    assert len(set(map(plots.strategy_colour, names))) == len(names)
    assert plots.strategy_colour("mine_1") == "#cb637b"


@given(st.lists(st.tuples(st.floats(0.5, 5), st.floats(0, 50)), min_size=1, max_size=20))
def test_the_front_is_what_nothing_beats(points):
    def is_beaten(point):
        rivals = [rival for rival in points if rival != point]
        return any(fast >= point[0] and good >= point[1] for fast, good in rivals)

    assert pareto_front(points) == sorted({point for point in points if not is_beaten(point)})


def test_a_point_without_a_measurable_gain_has_a_white_centre(tmp_path):
    def drawn(margin):
        rows = [sweep_row("full"), sweep_row(speedup=1.5, margin=margin)]
        return save_quality([Group("", rows)], tmp_path / "quality")[1].read_text("utf-8")

    assert "fill: #ffffff" not in drawn(0.1) and "fill: #ffffff" in drawn(0.6)
