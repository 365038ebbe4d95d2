import os

import pytest
from transformers import TrainerCallback
from transformers.integrations import integration_utils

from ulskip_cli.core import tracking as core_tracking
from ulskip_cli.core.config import compose_training
from ulskip_cli.core.errors import RunError, UsageError
from ulskip_cli.core.progress import NullProgress
from ulskip_cli.training import run as training
from ulskip_cli.training.tracking import tracker_arguments


class Killed(Exception):
    pass


class KillAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise Killed


@pytest.fixture
def overrides(model_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(core_tracking, "_is_installed", lambda package: True)
    monkeypatch.setattr(os, "environ", {**os.environ})
    options = [
        "limit=16",
        "train.batch_size=4",
        "train.log_every=1",
        "train.save_every=2",
        "train.held_out=4",
    ]
    steps = ["train.max_steps=4", "train.evaluate_every=3"]
    folders = [f"model.path={model_folder}", "model.dtype=float32", f"output={tmp_path / 'out'}"]
    return [*folders, *options, *steps]


class FakeTracker(TrainerCallback):
    """Takes the place of transformers' callback for wandb, and keeps what it would log."""

    calls = []  # noqa: RUF012
    error = None

    def on_train_begin(self, args, state, control, **kwargs):
        print("noise")
        self.calls.append((args.run_name, args.to_dict()))

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.calls.append((state.global_step, set(logs)))
        if self.error:
            raise self.error

    def on_train_end(self, args, state, control, **kwargs):
        self.calls.append("end")


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "wandb", FakeTracker)
    monkeypatch.setattr(FakeTracker, "calls", [])
    return FakeTracker


def test_settings_losses_and_validations_are_logged(overrides, fake, capsys):
    record = training.train(compose_training([*overrides, "tracker=wandb"]), NullProgress())
    (name, settings), *logs, end = fake.calls
    assert name == f"out-{record.identity}" and end == "end"
    assert settings["strategy.name"] == "unified" and settings["learning_rate"] > 0
    assert [step for step, keys in logs if "loss" in keys] == [1, 2, 3, 4]
    assert [step for step, keys in logs if "eval_loss_2x" in keys] == [3, 4]
    assert "tracker" not in record.config
    out, err = capsys.readouterr()
    assert not out and "noise" in err


def test_a_tracker_that_fails_ends_the_training_in_one_line(overrides, fake, monkeypatch):
    error = type("CommError", (Exception,), {"__module__": "wandb.errors"})("no network")
    monkeypatch.setattr(fake, "error", error)
    with pytest.raises(RunError, match=r"tracker=wandb failed \(no network\).*tracker=none"):
        training.train(compose_training([*overrides, "tracker=wandb"]), NullProgress())
    assert training.train(compose_training(overrides), NullProgress()).steps == 4


def test_an_error_of_the_training_is_not_blamed_on_the_tracker(overrides, fake, monkeypatch):
    monkeypatch.setattr(fake, "error", Killed())
    with pytest.raises(Killed):
        training.train(compose_training([*overrides, "tracker=wandb"]), NullProgress())


@pytest.mark.parametrize(
    ("tracker", "variable", "value"),
    [
        ("wandb", "WANDB_PROJECT", "mine"),
        ("wandb", "WANDB_DIR", "out"),
        ("mlflow", "MLFLOW_EXPERIMENT_NAME", "mine"),
        ("tensorboard", "TENSORBOARD_LOGGING_DIR", "out/tensorboard/mine"),
    ],
)
def test_the_project_reaches_every_tracker(overrides, tmp_path, tracker, variable, value):
    options = [f"tracker={tracker}", "tracker_options={project: mine}"]
    arguments = tracker_arguments(compose_training([*overrides, *options]), "id")
    assert arguments == {"report_to": tracker, "run_name": "out-id", "project": "mine"}
    assert os.environ[variable] in (value, str(tmp_path / value))


def test_options_of_transformers_are_passed_on_and_others_refused(overrides):
    options = {"run_name": "first", "trackio_space_id": "me/space"}
    config = compose_training(
        [
            *overrides,
            "tracker=trackio",
            "tracker_options={run_name: first, trackio_space_id: me/space}",
        ]
    )
    assert tracker_arguments(config, "id") == {
        "report_to": "trackio",
        "project": "ulskip",
        **options,
    }
    with pytest.raises(
        UsageError, match=r"tracker_options\.group .*environment variables of wandb"
    ):
        tracker_arguments(
            compose_training([*overrides, "tracker=wandb", "tracker_options={group: a}"]), "id"
        )


def test_tensorboard_files_lie_in_the_output_and_a_resumed_training_adds_to_them(
    overrides, tmp_path, monkeypatch
):
    pytest.importorskip("tensorboardX")
    config, trainer = compose_training([*overrides, "tracker=tensorboard"]), training.SkipTrainer

    def killed(*given):
        made = trainer(*given)
        made.add_callback(KillAt(3))
        return made

    with monkeypatch.context() as patch:
        patch.setattr(training, "SkipTrainer", killed)
        with pytest.raises(Killed):
            training.train(config, NullProgress())
    assert training.train(config, NullProgress()).resumed
    assert len(list((tmp_path / "out/tensorboard/ulskip").iterdir())) == 2
