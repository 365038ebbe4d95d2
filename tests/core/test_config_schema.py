from omegaconf import OmegaConf

from ulskip_cli.core.config import compose, compose_training
from ulskip_cli.core.config_schema import Config, TrainingConfig


def test_every_key_of_the_schemas_is_in_the_yaml_and_has_its_default_type():
    for composed, schema in ((compose([]), Config), (compose_training([]), TrainingConfig)):
        assert isinstance(composed, schema)
        assert set(OmegaConf.structured(schema).keys()) == set(vars(composed))
