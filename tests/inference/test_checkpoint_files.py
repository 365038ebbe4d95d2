import shutil

import huggingface_hub
import pytest

from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.model_config import ModelConfig
from ulskip_cli.inference.checkpoint_files import folder_of

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def hub_model(name):
    return ModelConfig(name="hf", source="hf", path=name)


@pytest.fixture
def hub_cache(model_folder, tmp_path, monkeypatch):
    """A hub cache with one model, without access to the hub."""
    snapshot = tmp_path / "models--owner--name" / "snapshots" / COMMIT
    shutil.copytree(model_folder, snapshot)
    refs = tmp_path / "models--owner--name" / "refs"
    refs.mkdir()
    (refs / "main").write_text(COMMIT)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return snapshot


def test_a_hub_model_is_taken_from_the_cache(hub_cache):
    assert folder_of(hub_model("owner/name")) == hub_cache


def test_a_model_that_cannot_be_downloaded_is_named(hub_cache):
    with pytest.raises(UsageError, match="owner/other"):
        folder_of(hub_model("owner/other"))


def test_local_and_bundled_models_are_found(model_folder):
    assert folder_of(hub_model(str(model_folder))) == model_folder
    bundled = folder_of(ModelConfig(name="tiny", source="bundled", path="tiny"))
    assert (bundled / "model.safetensors").is_file()


def test_random_weights_have_no_files():
    with pytest.raises(UsageError, match="model=random"):
        folder_of(ModelConfig(name="random", source="random", path="llama-12x128"))
