import pytest

from ulskip_cli.errors import UsageError
from ulskip_cli.strategies.custom import Custom


def test_keeps_what_is_listed():
    custom = Custom([0, 3])
    assert custom.kept_layers(6, custom.num_kept(6, 9.0)) == (0, 3)
    assert not Custom.follows_ratio


def test_layers_beyond_the_model_are_refused():
    with pytest.raises(UsageError, match="between 0 and 5"):
        Custom([0, 6]).kept_layers(6, 2)
