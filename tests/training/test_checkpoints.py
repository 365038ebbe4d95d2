import json
import os

import pytest
import torch
from safetensors.torch import save_file

from ulskip_cli.training.run import last_checkpoint


class Told:
    def __init__(self):
        self.labels = []

    def phase(self, label, total=0):
        self.labels.append(label)
        return lambda done, note="": None


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
    told = Told()
    assert last_checkpoint(tmp_path, told) == str(tmp_path / "checkpoint-10")
    assert told.labels == []


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
    told = Told()
    assert last_checkpoint(tmp_path, told) == str(tmp_path / "checkpoint-9")
    (label,) = told.labels
    assert str(tmp_path / "checkpoint-10") in label
    assert not (tmp_path / "checkpoint-10").exists()


def test_without_an_intact_checkpoint_the_training_starts_afresh(tmp_path):
    halve(make(tmp_path, 10) / "optimizer.pt")
    (tmp_path / "checkpoint-\u00b2").mkdir()
    assert last_checkpoint(tmp_path, Told()) is None
    assert (tmp_path / "checkpoint-\u00b2").is_dir()
