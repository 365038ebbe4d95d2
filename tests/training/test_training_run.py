import json
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from transformers.integrations import integration_utils

from ulskip_cli.core.errors import RunError, UsageError
from ulskip_cli.inference.model_files import training_notes
from ulskip_cli.training.training_run import last_checkpoint

pytestmark = pytest.mark.usefixtures("single_thread")  # sums have one order, also in subprocesses


QUICK = ["limit=16", "train.batch_size=4", "train.learning_rate=1e-3", "train.log_every=1"]
LONG = ["train.epochs=4", "train.save_every=3"]
LONG += ["train.evaluate_every=4", "train.validation={limit:16}"]  # the training set
LONG_TRAININGS = {
    "unified": ["strategy=unified", "train.ratios=[1,2]", *LONG],
    "early_exit": ["strategy=early_exit", "strategy.min_exit=2", "strategy.every=2", *LONG],
}


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def run(train, out):
    """Return a function that trains into the folder `out`."""
    return partial(train, out, *QUICK)


@pytest.fixture(scope="module")
def finished(train, tmp_path_factory):
    """A function that runs a short training with a schedule, its folder and its record."""
    output = tmp_path_factory.mktemp("finished") / "out"
    changes = ["train.ratios=[1,2]", "train.held_out=4", "train.evaluate_every=2"]
    again = partial(train, output, *QUICK, *changes)
    return again, output, again()


@pytest.fixture(scope="module", params=sorted(LONG_TRAININGS))
def undisturbed(request, train, tmp_path_factory):
    """The name, the folder and the record of a long training that nothing interrupts."""
    output = tmp_path_factory.mktemp(request.param) / "out"
    return request.param, output, train(output, *QUICK, *LONG_TRAININGS[request.param])


def weights(folder):
    return load_file(folder / "model.safetensors")


def test_the_result_is_a_plain_model_that_says_how_it_was_trained(finished, model_folder):
    _, out, record = finished
    model = AutoModelForCausalLM.from_pretrained(out)
    assert AutoTokenizer.from_pretrained(out)("a b")["input_ids"]
    assert model.config.use_cache and type(model).__name__ == "LlamaForCausalLM"
    before = weights(model_folder)
    assert any(not torch.equal(before[name], tensor) for name, tensor in weights(out).items())
    assert json.loads((out / "training.json").read_text()) == record.plain()
    assert record.kept_layers["2"] == (0, 2, 5)
    assert (record.steps, record.examples, record.validation_examples) == (3, 12, 3)  # 1 too long
    assert [point.step for point in record.learning_curve] == [2, 3]
    assert set(record.learning_curve[0].validation_loss) == {"1x", "2x"}
    note = "with unified skipping: 6, 3 layers drawn per step, 3 steps"
    assert training_notes(str(out))["training"] == note
    assert not (out / "checkpoints").exists()


def test_a_finished_training_is_not_run_again(finished):
    again, out, record = finished
    saved = (out / "model.safetensors").stat().st_mtime_ns
    (out / "checkpoints").mkdir()  # as a process leaves it that is killed before it removes them
    progress = Mock()
    assert again(progress=progress) == record
    progress.note.assert_called_once()
    (note,) = progress.note.call_args.args
    assert f"{out} contains this training, which is finished" in note
    assert "output=DIR" in note
    assert not (out / "checkpoints").exists()
    assert (out / "model.safetensors").stat().st_mtime_ns == saved
    for other in ("seed=2", "max_new_tokens=65"):
        with pytest.raises(UsageError, match=f"{out}.*output="):
            again(other)


def test_a_tracker_that_does_not_exist_is_one_line(run):
    with pytest.raises(UsageError, match=r"train\.training_args: .*nosuch"):
        run("train.training_args={report_to:nosuch}")


@pytest.mark.parametrize("name", ["out", "out/mine.txt", "out/checkpoints/checkpoint-1/x"])
def test_files_of_something_else_are_left_alone(run, tmp_path, name):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("precious")
    with pytest.raises(UsageError, match=f"{tmp_path}/out"):
        run()


def test_all_weights_are_saved_in_the_type_of_the_checkpoint(run, out, copied_model):
    half = AutoModelForCausalLM.from_pretrained(copied_model, dtype=torch.bfloat16)
    half.save_pretrained(copied_model)
    run(f"model.path={copied_model}", "model.dtype=auto", "train.max_steps=1")
    assert {tensor.dtype for tensor in weights(out).values()} == {torch.bfloat16}


def test_long_references_play_no_part_in_training_on_own_answers(run, tmp_path):
    rows = [{"prompt": f"p{i}", "reference": "word " * 200} for i in range(4)]
    file = tmp_path / "task.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = ["train.responses=own", "train.max_length=64", "max_new_tokens=4"]
    record = run("task=jsonl", f"task.file={file}", *own, "train.max_steps=1")
    assert (record.examples, record.left_out) == (4, 0)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_models_own_answers_train_other_methods_too(run, tmp_path, method):
    own = ["train.responses=both", "max_new_tokens=4", f"train.own.file={tmp_path / 'own.jsonl'}"]
    changes = [f"train.method={method}", "train.prompt_share=0.5", "train.max_steps=1", "limit=4"]
    assert run(*changes, *own).examples == 12
    assert len((tmp_path / "own.jsonl").read_text().splitlines()) == 4


@pytest.mark.slow
def test_training_lowers_every_loss_that_it_trains(undisturbed):
    name, out, record = undisturbed
    first, *_, last = (point.validation_loss for point in record.learning_curve)
    if name == "early_exit":
        assert (record.exits, record.kept_layers) == ((2, 4, 6), {"2": (0, 1, 2, 3, 4, 5)})
        note = f"with early exit at 2, 4, 6 layers, {record.steps} steps"
        assert training_notes(out)["training"] == note
        expected = {"2", "4", "6"}
    else:
        expected = {"1x", "2x"}
    assert first.keys() == last.keys() == expected
    assert all(last[key] < first[key] for key in expected)


@pytest.mark.slow
@pytest.mark.parametrize("undisturbed", ["unified"], indirect=True)
def test_killed_and_run_again_it_ends_with_the_same_weights(undisturbed, run, model_folder, out):
    name, whole_folder, whole = undisturbed
    changes = LONG_TRAININGS[name]
    model = [f"model.path={model_folder}", "model.dtype=float32", f"output={out}"]
    command = [sys.executable, "-m", "ulskip_cli", "train", *model, *QUICK, *changes]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, env=environment, **silent)
    checkpoints = out / "checkpoints"
    saved = checkpoints / "checkpoint-6" / "model.safetensors"
    while process.poll() is None and not saved.exists():
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL
    assert not (out / "training.json").exists()
    with pytest.raises(UsageError, match=f"{out}.*unfinished"):
        run(*changes, "seed=2")
    (checkpoints / "checkpoint-99").mkdir()  # a kill in the middle of a save leaves such a folder
    (checkpoints / "checkpoint-99" / "trainer_state.json").write_text('{"epoch": 1')
    progress = Mock()
    resumed = run(*changes, progress=progress)
    assert re.search(r"continues from step \d+ of 16", str(progress.note.call_args_list))
    assert (resumed.resumed, whole.resumed) == (True, False)
    assert resumed.steps == whole.steps == 16
    expected = weights(whole_folder)
    for name, tensor in weights(out).items():
        assert torch.equal(tensor, expected[name]), name


def test_every_option_of_the_loss_trains_and_frozen_embeddings_stay(run, model_folder, out):
    options = ["train.distill_weight=0.5", "train.freeze_embeddings=true", "train.max_steps=2"]
    record = run(*options, "train.gradient_accumulation_steps=2")
    assert (record.steps, record.based_on) == (2, None)
    assert record.peak_memory_bytes > 1e8  # torch alone needs more
    before, after = weights(model_folder), weights(out)
    assert torch.equal(before["model.embed_tokens.weight"], after["model.embed_tokens.weight"])
    trained_weight = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(before[trained_weight], after[trained_weight])


def test_weights_that_blow_up_are_not_saved(run, out):
    explosion = ["train.learning_rate=1e30", "train.warmup=0", "train.max_steps=9"]
    explosion += ["train.training_args={max_grad_norm: 0}", "train.save_every=1"]
    with pytest.raises(RunError, match=r"finite.*train\.learning_rate .now 1e\+30.*output=DIR"):
        run(*explosion)
    assert not (out / "training.json").exists()
    saved = sorted(path.name for path in (out / "checkpoints").glob("checkpoint-*"))
    assert saved and "checkpoint-9" not in saved
    explosion = ["train.learning_rate=1e39", "train.warmup=0", "train.max_steps=1"]
    with pytest.raises(RunError, match=r"finite weights.*rate \(now 1e\+39.*output=DIR"):
        run(*explosion, f"output={out.with_name('x')}")


def test_a_training_that_diverges_says_so(ulskip, model_folder, out):
    model = [f"model.path={model_folder}", "model.dtype=float32", f"output={out}"]
    hot = ["train.learning_rate=10", "train.warmup=0", "train.max_steps=4", "train.log_every=4"]
    code, told, err = ulskip("train", *model, *QUICK, *hot)
    assert code == 0, err
    assert "warning: the training diverged" in told and "lower train.learning_rate (now 10)" in told
    assert "next, " not in told
    record = json.loads((out / "training.json").read_text())
    assert record["train_loss"] > 2 * record["first_loss"]
    assert len(record["warnings"]) == 1
    assert training_notes(out)["training"].endswith("it diverged")


@pytest.mark.slow
@pytest.mark.long
def test_two_processes_end_with_the_weights_of_one(train, model_folder, tmp_path):
    """DDP over gloo: two devices of batch 4 take the steps of one of batch 8, nearly."""
    common = ["model.device=cpu", "limit=8", "train.ratios=[1,2]", "train.max_steps=2"]
    common.append("train.learning_rate=1e-3")
    model = [f"model.path={model_folder}", "model.dtype=float32"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    launch = "-m torch.distributed.run --standalone --nproc_per_node=2 -m ulskip_cli train"
    two = [*launch.split(), *model, *common, "train.batch_size=4", f"output={tmp_path / 'two'}"]
    done = subprocess.run([sys.executable, *two], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    train(tmp_path / "one", *common, "train.batch_size=8")
    assert json.loads((tmp_path / "two" / "training.json").read_text())["steps"] == 2
    pairs = [weights(tmp_path / name) for name in ("two", "one")]
    before = weights(model_folder)
    assert any(not torch.equal(before[name], pairs[0][name]) for name in before)
    for name in before:
        torch.testing.assert_close(pairs[0][name], pairs[1][name], rtol=0, atol=1e-4)


class FakeTracker(TrainerCallback):
    """Takes the place of transformers' callback for wandb, and keeps what it would log."""

    logs = []  # noqa: RUF012

    def on_train_begin(self, args, state, control, **kwargs):
        print("noise")

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.logs.append((state.global_step, set(logs)))


def test_losses_and_validations_reach_what_report_to_names(run, monkeypatch, capsys):
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "wandb", FakeTracker)
    monkeypatch.setattr(FakeTracker, "logs", [])
    changes = ["train.held_out=4", "train.max_steps=2", "train.evaluate_every=2"]
    run(*changes, "train.training_args={report_to: wandb}")
    assert [step for step, keys in FakeTracker.logs if "loss" in keys] == [1, 2]
    assert [step for step, keys in FakeTracker.logs if "eval_loss_2x" in keys] == [2]
    out, err = capsys.readouterr()
    assert not out and "noise" in err


# ---- The last intact checkpoint ----


def make_checkpoint(folder, step):
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    save_file({"a": torch.ones(64)}, checkpoint / "model.safetensors")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.save({"a": torch.ones(64)}, checkpoint / name)
    state = {"global_step": step, "log_history": []}
    (checkpoint / "trainer_state.json").write_text(json.dumps(state))
    return checkpoint


def test_the_newest_checkpoint_is_continued(tmp_path):
    make_checkpoint(tmp_path, 9), make_checkpoint(tmp_path, 10)
    (tmp_path / "checkpoint-best").mkdir()
    told = Mock()
    assert last_checkpoint(tmp_path, told) == str(tmp_path / "checkpoint-10")
    assert not told.phase.called


def flip(file):
    data = bytearray(file.read_bytes())
    at = data.index(torch.ones(64).numpy().tobytes())
    data[at] ^= 1
    file.write_bytes(data)


def halve(file):
    os.truncate(file, file.stat().st_size // 2)


DAMAGES = [
    *((name, flip) for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth")),
    ("optimizer.pt", halve),
    ("model.safetensors", halve),
    ("model.safetensors", os.remove),
    ("trainer_state.json", lambda file: file.write_text('{"a": 1}')),
    ("trainer_state.json", halve),
]


@pytest.mark.parametrize(("name", "damage"), DAMAGES)
def test_a_damaged_checkpoint_is_removed_and_named(name, damage, tmp_path):
    make_checkpoint(tmp_path, 9)
    damage(make_checkpoint(tmp_path, 10) / name)
    told = Mock()
    assert last_checkpoint(tmp_path, told) == str(tmp_path / "checkpoint-9")
    assert str(tmp_path / "checkpoint-10") in told.phase.call_args.args[0]
    assert not (tmp_path / "checkpoint-10").exists()


def test_without_an_intact_checkpoint_the_training_starts_afresh(tmp_path):
    halve(make_checkpoint(tmp_path, 10) / "optimizer.pt")
    (tmp_path / "checkpoint-\u00b2").mkdir()
    assert last_checkpoint(tmp_path, Mock()) is None
    assert (tmp_path / "checkpoint-\u00b2").is_dir()
