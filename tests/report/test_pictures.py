import re

from hypothesis import given
from hypothesis import strategies as st
from report_rows import not_applicable, small_sweep, sweep_row

from ulskip_cli.report import pictures
from ulskip_cli.report.groups import grouped


def drawn(rows):
    return {one.name: one for one in pictures.draw(grouped(rows), 0.9)}


def test_a_sweep_has_its_pictures(tmp_path):
    found = drawn([*small_sweep(), not_applicable()])
    assert list(found) == ["quality", "targets", "throughput", "layers"]
    png, svg = found["quality"].save(tmp_path)
    assert png.read_bytes().startswith(b"\x89PNG")
    for text in ("unified", "Pareto front", "measured decode speedup, batch 1", "gate: 90% of full"):
        assert f"<!-- {text} -->" in svg.read_text()


def test_on_a_page_a_picture_has_the_pages_ink_and_ids_of_its_own():
    found = drawn(small_sweep())
    ids = [set(re.findall(r'\bid="([^"]+)"', one.svg())) for one in found.values()]
    assert not ids[0] & ids[1]
    for one in found.values():
        text = one.svg()
        assert text.startswith("<svg ")
        assert "currentColor" in text
        assert "<style" not in text
        assert "DejaVu" not in text
        references = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', text))
        assert references <= set(re.findall(r'\bid="([^"]+)"', text))


def test_exit_depths_are_drawn_where_there_are_some():
    row = sweep_row("early_exit", exit_depths={"2": 30, "4": 60, "6": 10})
    text = drawn([sweep_row("full"), row])["exits"].svg()
    assert "mean 3.6" in text
    assert "early_exit 2x, batch 1" in text


def test_stages_are_drawn_with_the_layers_that_leave():
    row = sweep_row("skip_decode", later_stages=[{"first_step": 4, "kept_layers": [0, 5]}])
    assert pictures.last_stage(row) == {0, 5}
    assert "layers" in drawn([row])


def test_rows_without_anything_to_draw_draw_nothing():
    assert drawn([not_applicable()]) == {}
    bare = sweep_row(bleu=None, chrf=None, decode_loss=None, measured_speedup=None, kept_layers=[])
    assert drawn([bare]) == {}


@given(st.lists(st.tuples(st.floats(0.5, 5), st.floats(0, 50)), min_size=1, max_size=20))
def test_the_front_is_what_nothing_beats(points):
    front = pictures.pareto(points)
    assert set(front) <= set(points)
    assert front == sorted(front)
    for speed, value in points:
        assert any(fast >= speed and good >= value for fast, good in front)
    for one in front:
        assert not any(fast >= one[0] and good >= one[1] and (fast, good) != one for fast, good in points)
