import json

import pytest

from ulskip_cli.core.config import compose_training
from ulskip_cli.core.errors import UsageError
from ulskip_cli.training.preflight import trainer_arguments


def check(extra):
    config = compose_training([])
    trainer_arguments(config.replace(train=config.train.replace(training_args=extra)))


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"gradient_checkpointing": True}, "checkpointing.*train.batch_size"),
        ({"fsdp": "full_shard"}, "train.training_args .*fsdp"),
        ({"learning_rate": 1.0}, "train.training_args.learning_rate"),
    ],
)
def test_what_would_train_something_else_is_refused(extra, message):
    with pytest.raises(UsageError, match=message):
        check(extra)


def test_deepspeed_settings_are_read_from_a_file(tmp_path):
    for stage in (2, 3):
        (tmp_path / f"zero{stage}.json").write_text(
            json.dumps({"zero_optimization": {"stage": stage}})
        )
    check({"deepspeed": str(tmp_path / "zero2.json")})
    with pytest.raises(UsageError, match="stage 3"):
        check({"deepspeed": str(tmp_path / "zero3.json")})
