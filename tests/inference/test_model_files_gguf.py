from functools import partial
from unittest.mock import Mock

import pytest
import reference
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ulskip_cli.core.config import compose
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.model_metadata import ModelFolder
from ulskip_cli.core.progress import ProgressCallback
from ulskip_cli.export.export_run import ExportRequest, run_export
from ulskip_cli.inference import model_files
from ulskip_cli.inference.loading import load, load_tokenizer

pytest.importorskip("gguf")
hf = partial(reference.hf, device="cpu")


@pytest.fixture(scope="module")
def file(model_folder, tmp_path_factory):
    """Return a GGUF file of all layers of the saved model, in float32."""
    to = tmp_path_factory.mktemp("gguf") / "whole.gguf"
    whole = [f"model.path={model_folder}", "strategy=full"]
    config = compose(whole, command="export --format gguf")
    run_export(config, ExportRequest(to, "gguf", check=False))
    return to


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Use an empty cache."""
    monkeypatch.setenv("ULSKIP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


@pytest.mark.parametrize("folder", [False, True])
def test_a_gguf_file_is_loaded_like_the_model_that_it_contains(model_folder, file, cache, folder):
    progress = Mock()
    loaded = load(hf(file.parent if folder else file, dtype="float32"), progress=progress)
    progress.phase.assert_any_call("convert whole.gguf to float32, once", 56)
    progress.phase.return_value.assert_any_call(56)
    expected = AutoModelForCausalLM.from_pretrained(model_folder).eval()
    ids = torch.arange(8)[None]
    with torch.inference_mode():
        torch.testing.assert_close(loaded.model(ids).logits, expected(ids).logits)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    text = "der Hund <eos>"
    assert load_tokenizer(hf(file))(text).input_ids == tokenizer(text).input_ids
    assert loaded.model.generation_config.eos_token_id == [tokenizer.eos_token_id]
    assert loaded.notes["quantization"] == "whole.gguf, dequantized to float32"
    assert loaded.metadata.num_layers == expected.config.num_hidden_layers


def test_the_copy_is_made_once_for_each_type(file, cache, monkeypatch):
    first = model_files.converted_gguf(file, "float32", ProgressCallback())
    half = model_files.converted_gguf(file, "bfloat16", ProgressCallback())
    assert load(hf(half, dtype="bfloat16")).model.dtype == torch.bfloat16
    monkeypatch.setattr(model_files, "_convert", None)
    assert model_files.converted_gguf(file, "float32", ProgressCallback()) == first != half


def test_an_interrupted_conversion_leaves_nothing(file, cache, monkeypatch):
    def interrupt(self, folder):
        (folder / "part").write_text("")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("transformers.PreTrainedTokenizerFast.save_pretrained", interrupt)
        with pytest.raises(KeyboardInterrupt):
            model_files.converted_gguf(file, "float32", ProgressCallback())
    assert [path.suffix for path in cache.iterdir()] == [".lock"]
    assert model_files.converted_gguf(file, "float32", ProgressCallback()).is_dir()


def test_names_of_ends_in_the_vocabulary_end_answers(file, monkeypatch):
    monkeypatch.setattr(model_files, "_ENDS", ("<pad>", "<|im_end|>"))
    loaded = load(hf(file, dtype="float32"))
    vocabulary = load_tokenizer(hf(file)).get_vocab()
    ends = sorted([vocabulary["<pad>"], vocabulary["<eos>"]])
    assert loaded.model.generation_config.eos_token_id == ends == loaded.model.config.eos_token_id


def test_a_file_that_transformers_cannot_read_is_named(file, tmp_path):
    other = tmp_path / "other.gguf"
    data = file.read_bytes()
    other.write_bytes(data.replace(b"llama", b"lambs"))
    with pytest.raises(UsageError, match=r"GGUF file that transformers reads.*other\.gguf.*lambs"):
        load(hf(other))
    assert ModelFolder(hf(other)).fingerprint != ModelFolder(hf(file)).fingerprint
