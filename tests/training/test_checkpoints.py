import json
import os
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import save_file

from ulskip_cli.training.run import last_checkpoint


def make(folder, step):
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    save_file({"a": torch.ones(64)}, checkpoint / "model.safetensors")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.save({"a": torch.ones(64)}, checkpoint / name)
    state = {"global_step": step, "log_history": []}
    (checkpoint / "trainer_state.json").write_text(json.dumps(state))
    return checkpoint


def test_the_newest_checkpoint_is_continued(tmp_path):
    make(tmp_path, 9), make(tmp_path, 10)
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
    make(tmp_path, 9)
    damage(make(tmp_path, 10) / name)
    told = Mock()
    assert last_checkpoint(tmp_path, told) == str(tmp_path / "checkpoint-9")
    assert str(tmp_path / "checkpoint-10") in told.phase.call_args.args[0]
    assert not (tmp_path / "checkpoint-10").exists()


def test_without_an_intact_checkpoint_the_training_starts_afresh(tmp_path):
    halve(make(tmp_path, 10) / "optimizer.pt")
    (tmp_path / "checkpoint-\u00b2").mkdir()
    assert last_checkpoint(tmp_path, Mock()) is None
    assert (tmp_path / "checkpoint-\u00b2").is_dir()
