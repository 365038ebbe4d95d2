import pytest

from ulskip_cli.strategies.static import BottomSkip, TopSkip, Unified


@pytest.mark.parametrize(("strategy", "kept"), [(TopSkip(), (0, 1, 2)), (BottomSkip(), (3, 4, 5))])
def test_one_end_is_kept(strategy, kept):
    assert strategy.kept_layers(6, strategy.num_kept(6, 2.0)) == kept


def test_both_spacings():
    assert Unified(spacing="even").kept_layers(30, 6) == (0, 6, 12, 17, 23, 29)
    assert Unified(spacing="reference").kept_layers(30, 6) == (0, 6, 12, 18, 24, 29)


def test_only_even_forgives_float_division():
    ratio = 10 / 7 * (1 + 1e-15)
    assert 10 / ratio < 7
    assert Unified(spacing="even").num_kept(10, ratio) == 7
    assert Unified(spacing="reference").num_kept(10, ratio) == 6
