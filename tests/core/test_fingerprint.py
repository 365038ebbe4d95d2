import os
import shutil

import pytest
from core.test_model_metadata import NOTE, hf
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from ulskip_cli.core import fingerprint as fingerprints
from ulskip_cli.core.fingerprint import fingerprint
from ulskip_cli.core.model_metadata import ASSETS


def test_the_fingerprint_of_a_folder_is_of_all_its_weights(tmp_path):
    folder = shutil.copytree(ASSETS / "tiny", tmp_path / "copy")
    whole = fingerprint(hf(folder))
    assert whole == fingerprint(hf(ASSETS / "tiny"))
    tensors = load_file(folder / "model.safetensors")
    for name in ("model.layers.3.mlp.down_proj.weight", "model.layers.8.input_layernorm.weight"):
        changed = {**tensors, name: tensors[name] * 0}
        save_file(changed, folder / "model.safetensors", NOTE)
        assert fingerprint(hf(folder)) != whole


def test_a_large_file_is_sampled(model_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(fingerprints, "_HASHED_BYTES", 2**10)
    folder = shutil.copytree(model_folder, tmp_path / "copy")
    whole = fingerprint(hf(folder))
    with (folder / "model.safetensors").open("r+b") as stream:
        stream.seek(100)
        stream.write(b"changed")
    assert fingerprint(hf(folder)) != whole


def test_a_file_is_read_again_only_if_its_size_or_time_changed(model_folder, tmp_path):
    folder = shutil.copytree(model_folder, tmp_path / "copy")
    file, whole = folder / "model.safetensors", fingerprint(hf(folder))
    state, data = file.stat(), bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert fingerprint(hf(folder)) == whole
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    assert fingerprint(hf(folder)) != whole


@pytest.mark.parametrize(
    "name", ["generation_config.json", "tokenizer_config.json", "chat_template.jinja", "LICENSE"]
)
def test_the_fingerprint_covers_what_decides_prompts_and_ends_of_answers(
    model_folder, tmp_path, name
):
    folder = shutil.copytree(model_folder, tmp_path / "copy")
    (folder / name).write_text('{"eos_token_id": [1, 2]}')
    assert (fingerprint(hf(folder)) == fingerprint(hf(model_folder))) is (name == "LICENSE")


def test_only_a_snapshot_of_the_hugging_face_cache_is_known_by_its_name(
    model_folder, tmp_path, monkeypatch
):
    snapshot = tmp_path / "cache" / "models--a" / "snapshots" / "abc"
    shutil.copytree(model_folder, snapshot)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "other"))
    assert fingerprint(hf(snapshot)) == fingerprint(hf(model_folder))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    assert fingerprint(hf(snapshot)) == "abc"
    (tmp_path / "snapshots").mkdir()
    (tmp_path / "snapshots" / "spoofed").symlink_to(snapshot)
    assert fingerprint(hf(tmp_path / "snapshots" / "spoofed")) == "abc"
