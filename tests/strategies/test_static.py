import pytest

from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.strategy import ScheduleRequest
from ulskip_cli.strategies.static import BottomSkip, Custom, TopSkip, Unified


@pytest.mark.parametrize(("strategy", "kept"), [(TopSkip(), (0, 1, 2)), (BottomSkip(), (3, 4, 5))])
def test_one_end_is_kept(strategy, kept):
    assert strategy.kept_layers(ScheduleRequest(6, strategy.num_kept(6, 2.0))) == kept


def test_only_even_forgives_float_division():
    ratio = 10 / 7 * (1 + 1e-15)
    assert 10 / ratio < 7
    assert Unified(spacing="even").num_kept(10, ratio) == 7
    assert Unified(spacing="reference").num_kept(10, ratio) == 6


def test_all_but_the_skipped_layers_are_kept():
    strategy = Custom(skip=[1, 4])
    assert strategy.kept_layers(ScheduleRequest(6, strategy.num_kept(6, 9.0))) == (0, 2, 3, 5)
    for options, match in (
        ({"skip": [6]}, r"0 and 5\b.*\[6\]"),
        ({"layers": [0], "skip": [1]}, "both"),
    ):
        with pytest.raises(UsageError, match=match):
            Custom(**options).kept_layers(ScheduleRequest(6, 4))
