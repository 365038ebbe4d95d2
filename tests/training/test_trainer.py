import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from ulskip_cli.core.config import compose_training
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.progress import NullProgress
from ulskip_cli.training.run import train
from ulskip_cli.training.trainer import training_arguments


def test_an_argument_that_trainer_does_not_know_is_named(tmp_path):
    with pytest.raises(UsageError, match="learning_speed"):
        training_arguments(
            compose_training(["train.training_args={learning_speed:1}"]), tmp_path, False, {}
        )


def test_settings_arrive(tmp_path):
    made = training_arguments(compose_training(["train=paper"]), tmp_path, False, {})
    assert (made.learning_rate, made.num_train_epochs, made.gradient_accumulation_steps) == (
        2e-5,
        2,
        16,
    )
    assert (made.warmup_steps, made.lr_scheduler_type, made.per_device_train_batch_size) == (
        0.03,
        "cosine",
        1,
    )


@pytest.mark.slow
def test_two_processes_end_with_the_weights_of_one(model_folder, tmp_path):
    """DDP over gloo: two devices of batch 4 take the steps of one of batch 8, up to the order of
    summation.
    """
    common = [
        f"model.path={model_folder}",
        "model.dtype=float32",
        "limit=8",
        "train.ratios=[1,2]",
        "train.max_steps=2",
    ]
    common += ["train.learning_rate=1e-3", "model.device=cpu", "train.optimizer=adamw"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
        "-m",
        "ulskip_cli",
        "train",
    ]
    two = [*launch, *common, "train.batch_size=4", f"output={tmp_path / 'two'}"]
    done = subprocess.run(two, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    train(
        compose_training([*common, "train.batch_size=8", f"output={tmp_path / 'one'}"]),
        NullProgress(),
    )
    assert json.loads((tmp_path / "two" / "training.json").read_text())["steps"] == 2
    pairs = [load_file(tmp_path / name / "model.safetensors") for name in ("two", "one")]
    before = load_file(model_folder / "model.safetensors")
    assert any(not torch.equal(before[name], pairs[0][name]) for name in before)
    for name in before:
        torch.testing.assert_close(pairs[0][name], pairs[1][name], rtol=0, atol=1e-4)
