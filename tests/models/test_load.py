import json

import pytest
import torch

from ulskip_cli.errors import UsageError
from ulskip_cli.models.load import load, pick_device, training_note
from ulskip_cli.schema import ModelConfig


def test_a_folder_loads_with_its_tokenizer(model_folder):
    loaded = load(ModelConfig(name="hf", source="hf", path=str(model_folder), dtype="bfloat16"))
    assert loaded.model.dtype == torch.bfloat16
    assert not loaded.model.training
    assert loaded.tokenizer.padding_side == "left"
    assert loaded.facts.num_layers == 6
    assert "not stated" in loaded.notes["training"]


def test_random_weights_follow_the_seed(tmp_path):
    shape = {
        "model_type": "llama",
        "num_hidden_layers": 3,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_attention_heads": 2,
        "vocab_size": 50,
    }
    (tmp_path / "shape.json").write_text(json.dumps(shape))
    config = ModelConfig(name="random", source="random", path=str(tmp_path / "shape.json"), dtype="float32")
    first, again, other = (load(config, seed).model.lm_head.weight for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert load(config).tokenizer is None


@pytest.mark.parametrize("model_type", [{}, {"model_type": "nonsense"}, {"model_type": "vit"}])
def test_shapes_of_no_causal_lm_are_refused(tmp_path, model_type):
    (tmp_path / "shape.json").write_text(json.dumps({"num_hidden_layers": 3, **model_type}))
    with pytest.raises(UsageError, match=r"no model_type|no causal LM"):
        load(ModelConfig(name="random", source="random", path=str(tmp_path / "shape.json"), dtype="float32"))


def test_a_folder_without_weights_or_tokenizer_is_refused(model_folder, tmp_path):
    (tmp_path / "config.json").write_text((model_folder / "config.json").read_text())
    with pytest.raises(UsageError, match="cannot load a model from"):
        load(ModelConfig(name="hf", source="hf", path=str(tmp_path)))
    (tmp_path / "model.safetensors").write_bytes((model_folder / "model.safetensors").read_bytes())
    with pytest.raises(UsageError, match="cannot load a tokenizer from"):
        load(ModelConfig(name="hf", source="hf", path=str(tmp_path)))


def test_devices():
    assert pick_device("auto").type in ("cpu", "cuda", "mps")
    with pytest.raises(UsageError, match="not usable here"):
        pick_device("nonsense")


def test_the_training_record_is_told(tmp_path):
    record = {"strategy": "unified", "kept_counts": [12, 6], "steps": 10}
    (tmp_path / "training.json").write_text(json.dumps(record))
    assert training_note(str(tmp_path)) == "with skipping: unified, kept counts 12, 6 drawn per step, 10 steps"
