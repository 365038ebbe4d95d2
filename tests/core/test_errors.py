import pytest

from ulskip_cli.core.errors import one_line, unknown


def test_a_near_name_is_suggested():
    assert "did you mean 'full'?" in str(unknown("strategy", "ful", ["full", "unified"]))
    assert "did you mean" not in str(unknown("strategy", "zzz", ["full", "unified"]))


@pytest.mark.parametrize("text", ["x" * 5000, "x " * 2500, f"{'/x' * 2500} is no folder"])
def test_a_long_value_is_cut(text):
    assert len(one_line(text)) < 1300
    assert len(str(unknown("key", text, ["a"]))) < 200


def test_control_characters_do_not_reach_the_terminal():
    assert one_line("a\n\x1b[31mb\x07") == "a ?[31mb?"
