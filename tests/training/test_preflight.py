import json

import pytest

from ulskip_cli.core.config import compose_training
from ulskip_cli.core.errors import UsageError
from ulskip_cli.training.preflight import check_trainer_arguments, check_training


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"gradient_checkpointing": True}, "checkpointing.*train.batch_size"),
        ({"activation_checkpointing": True}, "checkpointing.*train.batch_size"),
        ({"fsdp": "full_shard"}, "train.training_args.fsdp"),
        ({"deepspeed": {"zero_optimization": {"stage": 3}}}, "deepspeed.* 2 .* 3"),
        ({"learning_rate": 1.0}, "train.training_args.learning_rate"),
    ],
)
def test_what_would_train_something_else_is_refused(extra, message):
    with pytest.raises(UsageError, match=message):
        check_trainer_arguments(extra)


def test_zero_2_and_trackers_pass():
    check_trainer_arguments(
        {"deepspeed": {"zero_optimization": {"stage": 2}}, "report_to": "tensorboard"}
    )


def test_deepspeed_settings_are_read_from_a_file(tmp_path):
    for stage in (2, 3):
        (tmp_path / f"zero{stage}.json").write_text(
            json.dumps({"zero_optimization": {"stage": stage}})
        )
    check_trainer_arguments({"deepspeed": str(tmp_path / "zero2.json")})
    with pytest.raises(UsageError, match="got 3"):
        check_trainer_arguments({"deepspeed": str(tmp_path / "zero3.json")})
    with pytest.raises(UsageError, match=r"none\.json"):
        check_trainer_arguments({"deepspeed": str(tmp_path / "none.json")})


def test_early_exit_trains_without_a_threshold_and_without_schedules_parts():
    check_training(compose_training([]))
    check_training(compose_training(["strategy=early_exit"]))
    with pytest.raises(UsageError, match=r"train\.full_weight"):
        check_training(compose_training(["strategy=early_exit", "train.full_weight=1"]))
    with pytest.raises(UsageError, match=r"strategy\.min_exit"):
        check_training(compose_training(["strategy=early_exit", "strategy.min_exit=99"]))
    with pytest.raises(UsageError, match="prompt_layers=all"):
        check_training(compose_training(["strategy=early_exit", "prompt_layers=kept"]))


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["train.ratios=[1,2]"], r"train\.ratios"),
        (["train.ratios=1"], r"train\.ratios"),
        (["prompt_layers=kept"], "prompt_layers=all"),
        (["strategy=early_exit"], "strategy=early_exit"),
        (["model=random", "model.path=x"], "model=random"),
        (["train.full_weight=0.5"], r"train\.full_weight"),
        (["train.dropout=0.1"], r"train\.lora\.dropout"),
        (["train.label_smoothing=0.1"], r"train\.label_smoothing"),
        (["train.freeze_embeddings=true"], r"train\.freeze_embeddings"),
        (["train.optimizer=muon"], r"train\.optimizer"),
        (["correction.kind=folded", "train.ratios=[2,3]"], r"correction\.kind=folded"),
        (["correction.kind=folded", "train.start=zero"], r"train\.start"),
        (["correction.kind=folded", "train.lora.rank=0"], r"train\.lora\.rank"),
        (["correction.kind=none", "train.lora.rank=0"], r"train\.lora\.rank"),
    ],
)
def test_what_a_skip_adapter_would_ignore_is_refused_by_its_key(overrides, key):
    check_training(compose_training(["train=adapter"]))
    with pytest.raises(UsageError, match=key):
        check_training(compose_training(["train=adapter", *overrides]))


@pytest.mark.parametrize("method", ["full", "lora"])
def test_keys_of_skip_adapters_are_refused_with_other_methods(method):
    keys = [
        "correction.kind=low_rank",
        "correction.rank=8",
        "train.start=zero",
        "train.responses=own",
        "train.own.samples=2",
    ]
    for key in keys:
        with pytest.raises(UsageError, match=".".join(key.split("=")[0].split(".")[:2])):
            compose_training([f"train.method={method}", key])
    with pytest.raises(UsageError, match=r"train\.lora\.rank"):
        compose_training(["train=lora", "train.lora.rank=0"])
