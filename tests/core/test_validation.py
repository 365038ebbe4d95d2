from dataclasses import fields, is_dataclass

import pytest

from ulskip_cli.core.config import compose, compose_training
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.validation import check_run, check_training


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


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [("speed", "new_tokens", 1), ("launcher", "workers", 0), ("launcher", "name", "mine"), ("decoding", "top_p", float("nan"))],
)
def test_keys_of_parts_are_refused_by_their_path(part, key, value):
    config = compose(["decoding=sample"])
    setattr(getattr(config, part), key, value)
    with pytest.raises(UsageError, match=rf"{part}\.{key}"):
        check_run(config)


def test_every_key_of_the_schemas_has_a_help_text():
    def missing(config):
        for one in fields(config):
            value = getattr(config, one.name)
            if is_dataclass(value):
                yield from missing(value)
            elif one.name not in ("name", "description", "task", "strategy"):
                yield from [] if one.metadata.get("help") else [one.name]

    assert not list(missing(compose([]))) + list(missing(compose_training([])))
