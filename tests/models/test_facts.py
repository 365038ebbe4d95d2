import json
import struct

import pytest

from ulskip_cli.errors import UsageError
from ulskip_cli.models.facts import describe, find_config, read_headers
from ulskip_cli.schema import ModelConfig


def hf(path, **options):
    return ModelConfig(name="hf", source="hf", path=str(path), **options)


def shape(name, dtype="auto"):
    return ModelConfig(name="random", source="random", path=name, dtype=dtype)


def test_bundled_shapes():
    smollm2 = describe(shape("smollm2-135m"))
    assert (smollm2.num_layers, smollm2.kv_bytes_per_layer, smollm2.weights) == (30, 2 * 3 * 64 * 2, None)
    assert describe(shape("bloom-7b1", "float32")).kv_bytes_per_layer == 2 * 4096 * 4


def test_a_folder_tells_its_weights(model_folder):
    facts = describe(hf(model_folder))
    assert facts.num_layers == 6
    assert len(facts.weights.layers) == 6
    assert sum(size for _, size in read_headers(model_folder).values()) >= facts.weights.head + sum(facts.weights.layers)


def test_shards_are_read_together(tmp_path):
    for i in range(2):
        header = json.dumps(
            {f"layers.{i}.w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "__metadata__": {}}
        ).encode()
        (tmp_path / f"model-{i}.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    assert read_headers(tmp_path) == {"layers.0.w": ([2], 8), "layers.1.w": ([2], 8)}


def test_nested_and_unusual_configs(tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps({"text_config": {"num_hidden_layers": 9, "hidden_size": 64, "num_attention_heads": 4}})
    )
    assert describe(hf(tmp_path)).num_layers == 9
    (tmp_path / "config.json").write_text(json.dumps({"n_layer": 4, "n_embd": 64, "n_head": 4, "multi_query": True}))
    assert describe(hf(tmp_path)).kv_bytes_per_layer == 2 * 16 * 4
    mla = {"n_layer": 4, "n_embd": 64, "n_head": 4, "kv_lora_rank": 8}
    (tmp_path / "config.json").write_text(json.dumps(mla))
    assert describe(hf(tmp_path)).kv_bytes_per_layer is None


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"num_hidden_layers": "x"}'])
def test_unreadable_configs_are_refused(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UsageError, match=r"config\.json"):
        describe(hf(tmp_path))


def test_damaged_weights_are_refused(tmp_path):
    for content in (b"12", b"version https://git-lfs.github.com/spec/v1", struct.pack("<Q", 2) + b"[]"):
        (tmp_path / "model.safetensors").write_bytes(content)
        with pytest.raises(UsageError, match="no readable safetensors"):
            read_headers(tmp_path)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("./nowhere", "no model folder"),
        ("/no/where", "no model folder"),
        ("gpt9", "no hub id"),
        ("some/model", "nor to be had from the hub.*model=tiny"),
    ],
)
def test_models_that_are_not_there_are_refused(path, message):
    with pytest.raises(UsageError, match=message):
        find_config(hf(path))


def test_a_folder_without_config_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"no config\.json in"):
        find_config(hf(tmp_path))


def test_unknown_shapes_are_refused():
    with pytest.raises(UsageError, match="did you mean 'bloom-7b1'"):
        find_config(shape("bloom-7b"))
    with pytest.raises(UsageError, match="no config file"):
        find_config(shape("nowhere.json"))
