import pytest

from ulskip_cli.core.errors import UsageError, require_choice, unknown


def test_a_near_name_is_suggested():
    assert "did you mean 'full'?" in str(unknown("strategy", "ful", ["full", "unified"]))
    assert "did you mean" not in str(unknown("strategy", "zzz", ["full", "unified"]))


def test_one_of_returns_or_refuses():
    assert require_choice("x", "a", ["a", "b"]) == "a"
    with pytest.raises(UsageError, match="unknown x 'c'"):
        require_choice("x", "c", ["a", "b"])
