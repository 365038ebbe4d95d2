import os
import shutil

import pytest
from core.test_model_metadata import NOTE
from huggingface_hub import constants
from reference import hf
from safetensors.torch import load_file, save_file

from ulskip_cli.core import fingerprint as fingerprints
from ulskip_cli.core.config import compose
from ulskip_cli.core.model_metadata import ASSETS, ModelFolder
from ulskip_cli.core.schedule import Stage


def test_the_fingerprint_of_a_folder_is_of_all_its_weights(tmp_path):
    folder = shutil.copytree(ASSETS / "tiny", tmp_path / "copy")
    whole = ModelFolder(hf(folder)).fingerprint
    assert whole == ModelFolder(hf(ASSETS / "tiny")).fingerprint
    tensors = load_file(folder / "model.safetensors")
    for name in ("model.layers.3.mlp.down_proj.weight", "model.layers.8.input_layernorm.weight"):
        changed = {**tensors, name: tensors[name] * 0}
        save_file(changed, folder / "model.safetensors", NOTE)
        assert ModelFolder(hf(folder)).fingerprint != whole


def test_a_large_file_is_sampled(copied_model, monkeypatch):
    monkeypatch.setattr(fingerprints, "_HASHED_BYTES", 2**10)
    whole = ModelFolder(hf(copied_model)).fingerprint
    with (copied_model / "model.safetensors").open("r+b") as stream:
        stream.seek(100)
        stream.write(b"changed")
    assert ModelFolder(hf(copied_model)).fingerprint != whole


def test_a_file_is_read_again_only_if_its_size_or_time_changed(copied_model):
    file, whole = copied_model / "model.safetensors", ModelFolder(hf(copied_model)).fingerprint
    state, data = file.stat(), bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert ModelFolder(hf(copied_model)).fingerprint == whole
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    assert ModelFolder(hf(copied_model)).fingerprint != whole


@pytest.mark.parametrize(
    "name", ["generation_config.json", "tokenizer_config.json", "chat_template.jinja", "LICENSE"]
)
def test_the_fingerprint_covers_what_decides_prompts_and_ends_of_answers(copied_model, name):
    before = ModelFolder(hf(copied_model)).fingerprint
    (copied_model / name).write_text('{"eos_token_id": [1, 2]}')
    assert (ModelFolder(hf(copied_model)).fingerprint == before) is (name == "LICENSE")


def test_only_a_snapshot_of_the_hugging_face_cache_is_known_by_its_name(
    model_folder, tmp_path, monkeypatch
):
    snapshot = tmp_path / "cache" / "models--a" / "snapshots" / "abc"
    shutil.copytree(model_folder, snapshot)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "other"))
    assert ModelFolder(hf(snapshot)).fingerprint == ModelFolder(hf(model_folder)).fingerprint
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    assert ModelFolder(hf(snapshot)).fingerprint == "abc"
    (tmp_path / "snapshots").mkdir()
    (tmp_path / "snapshots" / "spoofed").symlink_to(snapshot)
    assert ModelFolder(hf(tmp_path / "snapshots" / "spoofed")).fingerprint == "abc"


def test_a_digest_is_of_values_and_a_version(monkeypatch):
    options, stage = compose(["seed=2"]), Stage(0, (0, 2))
    known = fingerprints.digest("a", {"b": 1, "a": 2}, options, [stage])
    assert known == fingerprints.digest("a", {"a": 2, "b": 1}, compose(["seed=2"]), (stage,))
    others = [("a", {"a": 2, "b": 1}, compose([]), [stage]), ("a", {}, options, [Stage(0, (0, 1))])]
    assert len({known, *(fingerprints.digest(*parts) for parts in others)}) == 3
    monkeypatch.setattr(fingerprints, "VERSION", 0)
    assert fingerprints.digest("a", {"b": 1, "a": 2}, options, [stage]) != known
