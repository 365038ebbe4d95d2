import pytest

from ulskip_cli.errors import UsageError, one_of, unknown


def test_a_near_name_is_suggested():
    assert "did you mean 'full'?" in str(unknown("strategy", "ful", ["full", "unified"]))
    assert "did you mean" not in str(unknown("strategy", "zzz", ["full", "unified"]))


def test_one_of_returns_or_refuses():
    assert one_of("x", "a", ["a", "b"]) == "a"
    with pytest.raises(UsageError, match="unknown x 'c'"):
        one_of("x", "c", ["a", "b"])
