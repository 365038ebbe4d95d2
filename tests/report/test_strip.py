from hypothesis import given
from hypothesis import strategies as st

from ulskip_cli.report.strip import KEPT, ranges, ruler, strip


@given(st.sets(st.integers(0, 40)))
def test_a_strip_shows_exactly_the_kept_layers(kept):
    assert {i for i, cell in enumerate(strip(41, sorted(kept))) if cell == KEPT} == kept


@given(st.integers(1, 120))
def test_ruler_marks_stand_under_their_layers(num_layers):
    text = ruler(num_layers, every=5)
    for i in range(0, num_layers, 5):
        assert text[i:].startswith(str(i))


def test_ranges_join_neighbours():
    assert ranges((0, 1, 4)) == "0, 1, 4"
    assert ranges(()) == ""
