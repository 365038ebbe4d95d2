import json
import struct

import pytest
import torch
from reference import build_model, hf
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

from ulskip_cli.core.config_schema import ModelConfig
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.model_metadata import ASSETS, ModelFolder, read_headers
from ulskip_cli.core.weight_sizes import sum_weight_sizes
from ulskip_cli.inference.loading import load

NOTE = {"format": "pt"}


def shape(name, dtype="auto"):
    return ModelConfig(name="random", source="random", path=name, dtype=dtype, device="cuda")


def test_bundled_shapes():
    smollm2 = ModelFolder(shape("smollm2-135m")).metadata
    assert (smollm2.num_layers, smollm2.kv_bytes_per_layer) == (30, 2 * 3 * 64 * 2)
    assert smollm2.total_bytes == 2 * 134_515_008
    assert ModelFolder(shape("bloom-7b1", "float32")).metadata.kv_bytes_per_layer == 2 * 4096 * 4


@pytest.mark.parametrize("name", [file.stem for file in sorted((ASSETS / "shapes").glob("*.json"))])
def test_bundled_shapes_tell_the_weights_that_transformers_would_make(name):
    config = json.loads((ASSETS / "shapes" / f"{name}.json").read_text())
    config.pop("dtype", None)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    tensors = {key: (list(p.shape), 4 * p.numel()) for key, p in model.named_parameters()}
    metadata = ModelFolder(shape(name, "float32")).metadata
    expected = sum_weight_sizes(tensors, metadata.num_layers, model.config.vocab_size)
    assert metadata.weights == expected
    assert metadata.total_bytes == sum(size for _, size in tensors.values())


def test_shards_are_read_together(tmp_path):
    for i in range(2):
        save_file({f"layers.{i}.w": torch.zeros(2)}, tmp_path / f"model-{i}.safetensors", NOTE)
    assert read_headers(tmp_path) == {"layers.0.w": ([2], 8), "layers.1.w": ([2], 8)}


def test_nested_and_unusual_configs(tmp_path):
    def metadata(**config):
        (tmp_path / "config.json").write_text(json.dumps(config))
        return ModelFolder(hf(tmp_path)).metadata

    nested = {"num_hidden_layers": 9, "hidden_size": 64, "num_attention_heads": 4}
    assert metadata(text_config=nested).num_layers == 9
    old = {"n_layer": 4, "n_embd": 64, "n_head": 4}
    assert metadata(**old, multi_query=True).kv_bytes_per_layer == 2 * 16 * 4
    falcon = metadata(**old, multi_query=True, new_decoder_architecture=True)
    assert falcon.kv_bytes_per_layer == 2 * 4 * 16 * 4
    assert metadata(**old, kv_lora_rank=8).kv_bytes_per_layer is None


def test_a_quantized_checkpoint_is_refused(tmp_path):
    facts = {"num_hidden_layers": 1, "dtype": "bfloat16", "quantization_config": {}}
    (tmp_path / "config.json").write_text(json.dumps(facts))
    with pytest.raises(UsageError, match=r"without quantization.*config\.json"):
        _ = ModelFolder(hf(tmp_path)).metadata


def test_damaged_weights_are_refused(tmp_path):
    pointer = b"version https://git-lfs.github.com/spec/v1"
    for content in (b"12", pointer, struct.pack("<Q", 2) + b"[]"):
        (tmp_path / "model.safetensors").write_bytes(content)
        with pytest.raises(UsageError, match=r"model\.safetensors"):
            read_headers(tmp_path)


@pytest.mark.parametrize(
    ("name", "context"), [("llama", 128), ("gpt2", 128), ("bloom", None), ("gemma2", 128)]
)
def test_the_context_is_what_the_saved_config_says(name, context, tmp_path):
    build_model(name).config.save_pretrained(tmp_path)
    assert ModelFolder(hf(tmp_path)).metadata.context == context


SIZES = ("num_hidden_layers", "vocab_size", "head_dim")
ODD_VALUES = [(size, value) for size in SIZES for value in ("64", -8, 0, 12.0, True, {})]
ODD_VALUES += [("num_hidden_layers", 10**9), ("vocab_size", 10**12)]
ODD_VALUES += [("dtype", 5), ("text_config", [1])]
CONTENTS = [None, "{", "[]", "[" * 100_000, '{"is_encoder_decoder": true, "n_layer": 6}']


@pytest.mark.parametrize("content", [*CONTENTS, *ODD_VALUES], ids=lambda value: str(value)[:30])
def test_a_missing_unreadable_or_odd_config_is_named(content, tmp_path):
    key = ""
    if isinstance(content, tuple):
        key, value = content
        config = json.loads((ASSETS / "tiny" / "config.json").read_text("utf-8"))
        content = json.dumps({**config, key: value})
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(UsageError, match=rf"{key}.*config\.json") as caught:
        _ = ModelFolder(hf(tmp_path)).metadata
    assert str(tmp_path) in str(caught.value)


def test_headers_and_loaded_parameters_agree(model_folder):
    config = hf(model_folder, dtype="float32")
    assert ModelFolder(config).metadata.weights == load(config).metadata.weights is not None


@pytest.mark.parametrize(
    ("stored", "options", "expected"),
    [
        ("bfloat16", {}, "bfloat16"),
        ("float32", {}, "float32"),
        ("bfloat16", {"dtype": "float32"}, "float32"),
        (None, {}, "auto"),
    ],
)
def test_auto_is_the_type_of_the_checkpoint(model_folder, tmp_path, stored, options, expected):
    config = json.loads((model_folder / "config.json").read_text())
    config.pop("dtype")
    config |= {"dtype": stored} if stored else {}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert ModelFolder(hf(tmp_path, **options)).model.dtype == expected
