import pytest

from ulskip_cli.bounds import check_run, check_training
from ulskip_cli.config import compose, compose_training
from ulskip_cli.errors import UsageError


@pytest.mark.parametrize(("key", "value"), [("batch_size", 0), ("limit", 0), ("ratio_basis", "time"), ("name", "../up")])
def test_a_run_out_of_bounds_is_refused_by_its_key(key, value):
    config = compose([])
    setattr(config, key, value)
    with pytest.raises(UsageError, match=key):
        check_run(config)


@pytest.mark.parametrize(
    ("key", "value"), [("batch_size", 0), ("epochs", 0.0), ("teacher", "mine"), ("warmup", 1.0), ("distill_weight", -1.0)]
)
def test_a_training_out_of_bounds_is_refused_by_its_key(key, value):
    config = compose_training([])
    setattr(config.train, key, value)
    with pytest.raises(UsageError, match=f"train.{key}"):
        check_training(config)
