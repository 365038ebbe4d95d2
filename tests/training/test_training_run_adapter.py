import json
import shutil
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from report_rows import run_rows
from safetensors.torch import load_file, save_file

from ulskip_cli.core.config import compose
from ulskip_cli.core.correction import KINDS
from ulskip_cli.core.errors import UsageError
from ulskip_cli.training import trainer, training_run

pytestmark = pytest.mark.usefixtures("single_thread")  # sums have one order, also in subprocesses
QUICK = ["limit=12", "train.batch_size=4", "train.log_every=1", "train.max_steps=4"]
QUICK += ["train=adapter", "train.lora.rank=2", "train.responses=reference", "model.device=cpu"]


@pytest.fixture(scope="module")
def trained(train):
    """Return a function that trains a skip adapter for a few steps and returns the record."""
    return lambda output, *changes: train(output, *QUICK, *changes)


def tensors(folder):
    return load_file(Path(folder) / "adapter.safetensors")


@pytest.fixture(scope="module")
def finished(trained, tmp_path_factory):
    """A short training of two ratios, on references and the model's own answers."""
    output = tmp_path_factory.mktemp("adapter") / "out"
    changes = ["train.ratios=[2,3]", "train.responses=both", "max_new_tokens=4"]
    changes += ["train.validation={limit:12}", "train.evaluate_every=2"]
    return output, trained(output, *changes, "correction.learning_rate=1e-3")


def test_the_folder_holds_the_adapter_and_its_records(finished):
    output, record = finished
    names = {file.name for file in output.iterdir()}
    assert names >= {"adapter.safetensors", "adapter.json", "training.json"}
    assert not names & {"model.safetensors", "config.json", "checkpoints"}
    stored = json.loads((output / "adapter.json").read_text())
    assert stored["kept_sets"] == [[0, 2, 5], [0, 5]]
    assert stored["base"]["model"] and stored["base"]["fingerprint"]
    assert (stored["kind"], stored["lora_rank"], stored["training"]["steps"]) == ("full", 2, 4)
    assert json.loads((output / "training.json").read_text()) == record.plain()
    names = [name.split(".") for name in tensors(output)]
    patches = {(gaps, layer) for kind, gaps, layer, *_ in names if kind == "patch"}
    assert patches == {("0", "2"), ("0", "5"), ("1", "5")}
    assert {layer for kind, layer, *_ in names if kind == "lora"} == {"0", "2", "5"}


OWN = ["train.ratios=[2,3]", "train.save_every=2", "train.responses=own"]
OWN += ["train.own.samples=2", "max_new_tokens=4"]


@pytest.fixture(scope="module")
def whole(trained, tmp_path_factory):
    """The tensors of a training on the model's own answers that nothing interrupts."""
    output = tmp_path_factory.mktemp("whole") / "out"
    trained(output, *OWN)
    return tensors(output)


compute = trainer.SkipTrainer.compute_loss


def interrupted_in_step_4(self, *args, **kwargs):
    if self.state.global_step == 3:
        raise KeyboardInterrupt
    return compute(self, *args, **kwargs)


def killed_before_identity(path, content):
    path.with_name(f".{path.name}.0.tmp").write_text("")
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("target", "name", "stop"),
    [
        (training_run, "build_adapter_loss", Mock(side_effect=KeyboardInterrupt)),
        (training_run, "write_atomic", killed_before_identity),
        (training_run, "last_checkpoint", Mock(side_effect=KeyboardInterrupt)),
        (trainer.SkipTrainer, "compute_loss", interrupted_in_step_4),
    ],
    ids=["answers stored", "no identity", "no checkpoint", "a checkpoint"],
)
def test_interrupted_and_run_again_it_ends_with_equal_tensors(
    trained, tmp_path, monkeypatch, whole, target, name, stop
):
    with monkeypatch.context() as patched:
        patched.setattr(target, name, stop)
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path / "cut", *OWN)
    assert not (tmp_path / "cut" / "adapter.json").exists()
    resumed = trained(tmp_path / "cut", *OWN).resumed
    assert resumed == (stop is interrupted_in_step_4)
    cut = tensors(tmp_path / "cut")
    assert whole.keys() == cut.keys()
    assert all(torch.equal(cut[name], tensor) for name, tensor in whole.items())


@pytest.mark.parametrize(
    ("changes", "used"),
    [
        *(([f"correction.kind={kind}"], []) for kind in KINDS),
        (["strategy=skip_decode", "train.ratios=1.2"], []),
        (["train.ratios=3"], ["decoding=self_speculative", "batch_size=1"]),
    ],
    ids=str,
)
def test_every_kind_trains_and_is_used_by_a_run(
    trained, model_folder, tmp_path, quick, changes, used
):
    trained(tmp_path / "adapter", *changes, "train.max_steps=2")
    kept_sets = json.loads((tmp_path / "adapter" / "adapter.json").read_text())["kept_sets"]
    kept = next(layers for layers in kept_sets if len(layers) < 6)
    model = ["model=hf", f"model.path={model_folder}", "model.dtype=float32", "model.device=cpu"]
    adapter = ["correction=adapter", f"correction.path={tmp_path / 'adapter'}", *used]
    chosen = ["strategy=custom", f"strategy.layers={kept}", *adapter, "speed.enabled=false"]
    config = compose([*model, *chosen, f"results_dir={tmp_path}", *quick])
    row = run_rows(config)[-1]
    assert row["correction"]["path"] == str(tmp_path / "adapter")
    assert row["correction"]["bytes"] > 0 and row["decode_loss"] > 0
    assert bool(row["draft_tokens"]) == bool(used)


def test_an_adapter_is_trained_further_from_its_folder(finished, trained, tmp_path):
    output, _ = finished
    changes = ["train.ratios=[2,3]", f"train.start={output}"]
    changes += ["train.learning_rate=1e-9", "correction.learning_rate=1e-9"]
    trained(tmp_path / "further", *changes)
    before, after = tensors(output), tensors(tmp_path / "further")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, rtol=1e-4, atol=1e-6)


def test_a_training_that_was_killed_while_it_saved_its_result_runs_no_further_step(
    trained, tmp_path, monkeypatch
):
    changes = ["train.ratios=[2,3]", "train.max_steps=2", "train.save_every=1"]
    once = trained(tmp_path / "once", *changes)

    def kill(setup, output, record):
        (output / ".tmpAbC123").touch()
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(training_run, "_save", kill)
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path / "twice", *changes)
    twice = trained(tmp_path / "twice", *changes)
    assert (twice.steps, twice.train_loss, twice.epochs) == (2, once.train_loss, once.epochs)
    assert not list((tmp_path / "twice").glob(".tmp*"))
    for name, tensor in tensors(tmp_path / "once").items():
        assert torch.equal(tensor, tensors(tmp_path / "twice")[name])


def test_another_adapter_in_the_folder_of_the_start_is_another_training(
    finished, trained, tmp_path
):
    start, further = tmp_path / "start", tmp_path / "further"
    changes = ["train.ratios=[2,3]", f"train.start={start}", "train.max_steps=1"]
    shutil.copytree(finished[0], start)
    trained(further, *changes)
    weights = load_file(start / "adapter.safetensors")
    save_file({name: 2 * tensor for name, tensor in weights.items()}, start / "adapter.safetensors")
    with pytest.raises(UsageError, match="other settings or data"):
        trained(further, *changes)


def test_prompts_leave_room_for_the_models_own_answers(trained, tmp_path):
    article = json.dumps({"article": "the cat sat on the mat " * 80, "highlights": "cats"})
    (tmp_path / "a.jsonl").write_text(f"{article}\n" * 4)
    news = ["task=cnn_dm", f"task.file={tmp_path}/a.jsonl", "limit=4", "train.max_steps=1"]
    own = ["train.responses=own", "max_new_tokens=30", "train.max_length=64"]
    record = trained(tmp_path / "out", *news, *own, "train.ratios=2")
    assert (record.examples, record.left_out) == (4, 0)


@pytest.mark.parametrize("change", ["train.ratios=2", "correction.kind=none", "train.lora.rank=4"])
def test_a_start_of_other_settings_is_refused_by_its_key(finished, trained, tmp_path, change):
    start = f"train.start={finished[0]}"
    with pytest.raises(UsageError, match=r"train\.start"):
        trained(tmp_path / "other", "train.ratios=[2,3]", start, change)
