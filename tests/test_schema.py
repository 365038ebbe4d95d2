import pytest
from omegaconf import OmegaConf

from ulskip_cli.config import compose, compose_training
from ulskip_cli.errors import UsageError
from ulskip_cli.schema import Config, TrainingConfig, check_run, check_training


def test_every_key_of_the_schemas_is_in_the_yaml_and_has_its_default_type():
    for composed, schema in ((compose([]), Config), (compose_training([]), TrainingConfig)):
        assert isinstance(composed, schema)
        assert set(OmegaConf.structured(schema).keys()) == set(vars(composed))


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
