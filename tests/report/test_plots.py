import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_rows import not_applicable, small_sweep, sweep_row

from ulskip_cli.report import plots
from ulskip_cli.report.plots import (
    learning_curve,
    pareto_front,
    save_plots,
    save_predictions,
    save_quality,
)
from ulskip_cli.report.rows import grouped


@pytest.fixture
def draw(tmp_path):
    """The SVG of every plot of some rows, by name."""

    def save(rows):
        return {
            plot.files[0].stem: plot.files[1].read_text("utf-8")
            for plot in save_plots(grouped(rows), 0.9, tmp_path)
        }

    return save


def test_a_sweep_has_its_plots(draw, tmp_path):
    found = draw([*small_sweep(), not_applicable()])
    assert list(found) == ["quality", "layers"]
    assert all((tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG") for name in found)
    for text in (
        "unified",
        "Pareto front",
        "measured decode speedup, batch size 1",
        "quality gate: 90% of full",
        "BLEU",
        "2x",
    ):
        assert f">{text}</text>" in found["quality"]
    assert ">unified 3x</text>" in found["layers"]


def test_rows_without_anything_to_draw_draw_nothing(draw, tmp_path):
    bare = sweep_row(
        bleu=None, chrf=None, decode_loss=None, measured_speedup=None, kept_layers=None
    )
    assert draw([not_applicable()]) == draw([bare]) == draw([]) == {}
    assert save_quality([sweep_row(bleu=None, chrf=None)], tmp_path / "quality") == []
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["measured", "predicted"])
def test_quality_is_drawn_over_the_measured_speedup_or_the_predicted_one(tmp_path, kind):
    ends = ("measured_speedup", "measured_speedup_low", "measured_speedup_high")
    row = sweep_row(**dict.fromkeys(ends)) if kind == "predicted" else sweep_row()
    rows = [sweep_row("full"), row, row.replace(id="c", strategy="custom", target_speedup=None)]
    png, svg = save_quality(rows, tmp_path / "plots" / "quality", "a title")
    assert png.read_bytes().startswith(b"\x89PNG")
    for text in ("custom", f"{kind} decode speedup, batch size 1", "a title", "3 layers"):
        assert f">{text}</text>" in svg.read_text("utf-8")


def test_a_learning_curve_has_a_line_a_depth(tmp_path):
    curve = [
        {"step": step, "validation_loss": {"12": 3.0 / step, "6": 3.5 / step}} for step in (1, 2, 3)
    ]
    _, svg = learning_curve({"learning_curve": curve}, tmp_path / "curve")
    assert ">12 layers</text>" in svg.read_text("utf-8") and ">6 layers</text>" in svg.read_text(
        "utf-8"
    )
    assert learning_curve({"learning_curve": curve[:1]}, tmp_path / "none") == []


def test_the_clock_is_drawn_against_the_cost_model(tmp_path):
    rows = [sweep_row(target=target, batch=batch) for target in (2.0, 3.0) for batch in (1, 8)]
    rows.append(sweep_row(batch=2, predicted_speedup=None))
    rows = [row.replace(engine=name) for row, name in zip(rows, "abaaa", strict=True)]
    png, svg = save_predictions(rows, tmp_path / "speedup", lambda row: row.engine, "a title")
    assert png.read_bytes().startswith(b"\x89PNG")
    drawn = svg.read_text("utf-8")
    for text in ("a", "b", "batch 8", "measured decode speedup", "a title"):
        assert f">{text}</text>" in drawn
    assert "batch 2" not in drawn
    assert save_predictions(rows[-1:], tmp_path / "none", lambda row: row.engine) == []


def test_a_long_name_leaves_room_for_the_layers(draw):
    layers = draw([sweep_row("full"), sweep_row("x" * 100, id="a")])["layers"]
    assert f"…{'x' * 36} 2x</text>" in layers


def test_a_strategy_without_an_entry_has_a_colour_of_its_own():
    names = [*plots.COLOURS, *(f"mine_{i}" for i in range(50)), "unified + full patch"]
    assert len(set(map(plots.strategy_colour, names))) == len(names)
    assert plots.strategy_colour("mine_1") == "#cb637b"


@given(st.lists(st.tuples(st.floats(0.5, 5), st.floats(0, 50)), min_size=1, max_size=20))
def test_the_front_is_what_nothing_beats(points):
    front = pareto_front(points)
    assert set(front) <= set(points)
    assert front == sorted(front)
    for speed, value in points:
        assert any(fast >= speed and good >= value for fast, good in front)
    for one in front:
        assert not any(
            fast >= one[0] and good >= one[1] and (fast, good) != one for fast, good in points
        )
