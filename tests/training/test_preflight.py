import json

import pytest

from ulskip_cli.core.errors import UsageError
from ulskip_cli.training.preflight import check_trainer_arguments


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"gradient_checkpointing": True}, "drops the prompt's cache"),
        ({"activation_checkpointing": True}, "drops the prompt's cache"),
        ({"fsdp": "full_shard"}, "fsdp is refused"),
        ({"deepspeed": {"zero_optimization": {"stage": 3}}}, "stage 2 or below, got 3"),
        ({"learning_rate": 1.0}, r"train\.\* options"),
    ],
)
def test_what_would_train_something_else_is_refused(extra, message):
    with pytest.raises(UsageError, match=message):
        check_trainer_arguments(extra)


def test_zero_2_and_trackers_pass():
    check_trainer_arguments({"deepspeed": {"zero_optimization": {"stage": 2}}, "report_to": "tensorboard"})


def test_deepspeed_settings_are_read_from_a_file(tmp_path):
    for stage in (2, 3):
        (tmp_path / f"zero{stage}.json").write_text(json.dumps({"zero_optimization": {"stage": stage}}))
    check_trainer_arguments({"deepspeed": str(tmp_path / "zero2.json")})
    with pytest.raises(UsageError, match="got 3"):
        check_trainer_arguments({"deepspeed": str(tmp_path / "zero3.json")})
    with pytest.raises(UsageError, match="cannot read"):
        check_trainer_arguments({"deepspeed": str(tmp_path / "none.json")})
