from types import SimpleNamespace

import pytest
from transformers import TrainerCallback

from ulskip_cli.core import tracking as core_tracking
from ulskip_cli.core.config import compose_training
from ulskip_cli.core.progress import NullProgress
from ulskip_cli.training import run as training

RUNS = []


class FakeTracker:
    """Keeps its options, the names of its calls, and what was logged."""

    requires_logging_directory = False

    def __init__(self, project, **options):
        self.options, self.calls, self.logged = options, [], []
        self.tracker = SimpleNamespace(info=SimpleNamespace(run_id=options["run_id"] or f"r{len(RUNS)}"))
        RUNS.append(self)

    def log(self, values, step):
        self.logged.append((step, set(values)))

    def __getattr__(self, name):
        return lambda *values: self.calls.append(name)


class Killed(Exception):
    pass


class KillAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise Killed


@pytest.fixture
def config(model_folder, tmp_path, monkeypatch):
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    monkeypatch.setattr(core_tracking, "_is_installed", lambda package: True)
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "mlflow", FakeTracker)
    RUNS.clear()
    options = ["limit=16", "train.batch_size=4", "train.log_every=1", "train.save_every=2", "train.held_out=4"]
    steps = ["train.max_steps=4", "train.evaluate_every=2"]
    folders = [f"model.path={model_folder}", "model.dtype=float32", f"output={tmp_path / 'out'}"]
    return compose_training([*folders, *options, *steps, "tracker=mlflow"])


def _with_callback(trainer, callback):
    trainer.add_callback(callback)
    return trainer


def test_losses_and_validations_are_logged_by_step(config):
    record = training.train(config, NullProgress())
    (run,) = RUNS
    assert run.options["run_name"] == f"out-{record.identity}"
    assert run.calls == ["start", "store_init_configuration", "finish"]
    assert [step for step, keys in run.logged if "loss" in keys] == [1, 2, 3, 4]
    assert [step for step, keys in run.logged if "eval_loss_2x" in keys] == [2, 4]
    assert "tracker" not in record.config


def test_a_resumed_training_goes_on_with_its_run(config, monkeypatch):
    trainer = training.SkipTrainer
    with monkeypatch.context() as patch:
        patch.setattr(training, "SkipTrainer", lambda *given: _with_callback(trainer(*given), KillAt(3)))
        with pytest.raises(Killed):
            training.train(config, NullProgress())
    training.train(config, NullProgress())
    assert [run.options["run_id"] for run in RUNS] == [None, "r0"]
    assert RUNS[1].calls == ["start", "finish"]
    assert [step for step, keys in RUNS[1].logged if "loss" in keys] == [3, 4]
