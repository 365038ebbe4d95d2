import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback
from transformers.integrations import integration_utils

from ulskip_cli.core.config import compose_training
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.progress import ProgressCallback
from ulskip_cli.training.run import run_training
from ulskip_cli.training.trainer import training_arguments


def test_what_trainer_refuses_or_would_ignore_is_named():
    for override, named in (
        ("train.training_args={learning_speed:1}", "learning_speed"),
        ("train.precision=fp16", "requires a GPU"),
    ):
        with pytest.raises(UsageError, match=named):
            training_arguments(compose_training([override]))


@pytest.mark.slow
@pytest.mark.long
def test_two_processes_end_with_the_weights_of_one(model_folder, tmp_path):
    """DDP over gloo: two devices of batch 4 take the steps of one of batch 8, up to the order of
    summation.
    """
    common = [f"model.path={model_folder}", "model.dtype=float32", "model.device=cpu", "limit=8"]
    common += ["train.ratios=[1,2]", "train.max_steps=2"]
    common += ["train.learning_rate=1e-3"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    launch = "-m torch.distributed.run --standalone --nproc_per_node=2 -m ulskip_cli train"
    two = [*launch.split(), *common, "train.batch_size=4", f"output={tmp_path / 'two'}"]
    done = subprocess.run([sys.executable, *two], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    one = [*common, "train.batch_size=8", f"output={tmp_path / 'one'}"]
    run_training(compose_training(one), ProgressCallback())
    assert json.loads((tmp_path / "two" / "training.json").read_text())["steps"] == 2
    pairs = [load_file(tmp_path / name / "model.safetensors") for name in ("two", "one")]
    before = load_file(model_folder / "model.safetensors")
    assert any(not torch.equal(before[name], pairs[0][name]) for name in before)
    for name in before:
        torch.testing.assert_close(pairs[0][name], pairs[1][name], rtol=0, atol=1e-4)


@pytest.fixture
def overrides(model_folder, tmp_path):
    quick = ["limit=16", "train.batch_size=4", "train.log_every=1", "train.held_out=4"]
    steps = ["train.max_steps=2", "train.save_every=1", "train.evaluate_every=2"]
    folders = [f"model.path={model_folder}", "model.dtype=float32", f"output={tmp_path / 'out'}"]
    return [*folders, *quick, *steps]


class FakeTracker(TrainerCallback):
    """Takes the place of transformers' callback for wandb, and keeps what it would log."""

    logs = []  # noqa: RUF012

    def on_train_begin(self, args, state, control, **kwargs):
        print("noise")

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.logs.append((state.global_step, set(logs)))


def test_losses_and_validations_reach_what_report_to_names(overrides, monkeypatch, capsys):
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "wandb", FakeTracker)
    monkeypatch.setattr(FakeTracker, "logs", [])
    reported = [*overrides, "train.training_args={report_to: wandb}"]
    run_training(compose_training(reported), ProgressCallback())
    assert [step for step, keys in FakeTracker.logs if "loss" in keys] == [1, 2]
    assert [step for step, keys in FakeTracker.logs if "eval_loss_2x" in keys] == [2]
    out, err = capsys.readouterr()
    assert not out and "noise" in err
