import pytest
from ulskip_cli.strategies.block_influence import BlockInfluence

from ulskip_cli.core.config import compose
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.model_metadata import read_metadata
from ulskip_cli.core.schedule import even
from ulskip_cli.strategies.plan import make_plan


def test_the_highest_scores_stay_and_of_equal_ones_the_lower():
    strategy = BlockInfluence(scores=[0.5, 0.1, 0.1, 0.9])
    assert [strategy.kept_layers(4, count) for count in (2, 3)] == [(0, 3), (0, 1, 3)]


def test_scores_are_for_one_depth():
    with pytest.raises(UsageError, match=r"\b5 .*strategy\.scores.*\b4\b"):
        BlockInfluence(scores=[0.5, 0.1, 0.1, 0.9]).kept_layers(5, 2)


def test_a_calibration_fills_in_the_scores():
    class Measured:
        def block_influence(self):
            return [0.1, 0.30000004, 0.2]

    assert not BlockInfluence().is_calibrated
    strategy = BlockInfluence(**BlockInfluence().calibrate(3, 2, Measured()).options)
    assert strategy.is_calibrated and strategy.kept_layers(3, 2) == (1, 2)


def test_a_plan_before_calibration_warns_and_shows_even_spacing():
    config = compose(["strategy=block_influence"])
    plan = make_plan(config, read_metadata(config.model))
    assert plan.kept_layers == even(12, 6)
    (warning,) = plan.warnings
    assert "block_influence" in warning and BlockInfluence.stand_in in warning
