import pytest
from ulskip_cli.strategies.unified import Unified

from ulskip_cli.core.errors import UsageError


def test_both_spacings():
    assert Unified("even").kept_layers(30, 6) == (0, 6, 12, 17, 23, 29)
    assert Unified("reference").kept_layers(30, 6) == (0, 6, 12, 18, 24, 29)


def test_only_even_forgives_float_division():
    ratio = 10 / 7 * (1 + 1e-15)
    assert 10 / ratio < 7
    assert Unified("even").num_kept(10, ratio) == 7
    assert Unified("reference").num_kept(10, ratio) == 6


def test_unknown_spacing():
    with pytest.raises(UsageError, match="did you mean 'even'"):
        Unified("evn")
