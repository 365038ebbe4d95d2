"""Checkpoints with missing or surplus tensors are refused, and the message names the tensors."""

import json
import shutil

import pytest
import torch
from reference import NUM_LAYERS, build_model
from safetensors.torch import load_file, save_file

from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.model_config import ModelConfig
from ulskip_cli.inference.loading import load

EMBEDDINGS = {
    "llama": "model.embed_tokens.weight",
    "qwen2": "model.embed_tokens.weight",
    "bloom": "transformer.word_embeddings.weight",
    "gpt2": "transformer.wte.weight",
}
STACKS = {
    "llama": "model.layers",
    "qwen2": "model.layers",
    "bloom": "transformer.h",
    "gpt2": "transformer.h",
}


@pytest.fixture(params=EMBEDDINGS)
def architecture(request):
    return request.param


@pytest.fixture
def checkpoint(architecture, tokenizer, tmp_path):
    """A folder of a tiny random model, and a function that changes its tensors."""
    build_model(architecture).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)

    def change(rule):
        tensors = load_file(tmp_path / "model.safetensors")
        save_file(rule(tensors), tmp_path / "model.safetensors", metadata={"format": "pt"})
        return tmp_path

    return change


def load_from(folder, **keys):
    return load(
        ModelConfig(name="hf", source="hf", path=str(folder), dtype="float32", device="cpu", **keys)
    ).model


def refusal(folder, **keys):
    with pytest.raises(UsageError) as caught:
        load_from(folder, **keys)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)
    return str(caught.value)


def in_layer(name, architecture, layer):
    return name.startswith(f"{STACKS[architecture]}.{layer}.")


def test_an_untouched_checkpoint_loads(architecture, checkpoint):
    found, expected = (
        load_from(checkpoint(dict)).state_dict(),
        build_model(architecture).state_dict(),
    )
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_missing_layer_is_named(architecture, checkpoint):
    folder = checkpoint(
        lambda tensors: {k: v for k, v in tensors.items() if not in_layer(k, architecture, 2)}
    )
    assert f"{STACKS[architecture]}.2." in refusal(folder)


def test_missing_embeddings_are_named(architecture, checkpoint):
    folder = checkpoint(
        lambda tensors: {k: v for k, v in tensors.items() if k != EMBEDDINGS[architecture]}
    )
    assert EMBEDDINGS[architecture] in refusal(folder)


def test_a_missing_untied_head_is_named(tokenizer, tmp_path):
    build_model("llama").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert "lm_head.weight" in refusal(tmp_path)


def test_tensors_of_other_names_are_named(checkpoint):
    folder = checkpoint(
        lambda tensors: {f"other.{name}": tensor for name, tensor in tensors.items()}
    )
    assert "other." in refusal(folder)


def test_a_tensor_of_another_shape_is_named(architecture, checkpoint):
    def reshape(tensors):
        name = next(
            name
            for name in tensors
            if in_layer(name, architecture, 3) and "mlp" in name and "weight" in name
        )
        return {**tensors, name: torch.zeros(3, 5)}

    message = refusal(checkpoint(reshape))
    assert f"{STACKS[architecture]}.3.mlp" in message
    assert "[3, 5]" in message


@pytest.mark.parametrize("change", [1, -1])
def test_a_config_of_another_depth_is_refused(architecture, checkpoint, change):
    folder = checkpoint(dict)
    config = json.loads((folder / "config.json").read_text())
    key = "num_hidden_layers" if "num_hidden_layers" in config else "n_layer"
    config.pop("layer_types", None)
    (folder / "config.json").write_text(json.dumps({**config, key: NUM_LAYERS + change}))
    assert f"{STACKS[architecture]}.{min(NUM_LAYERS, NUM_LAYERS + change)}." in refusal(folder)


def test_biases_that_the_config_leaves_out_are_refused(checkpoint, architecture):
    name = f"{STACKS[architecture]}.1.mlp.another.bias"
    assert name in refusal(checkpoint(lambda tensors: {**tensors, name: torch.zeros(4)}))


def test_old_buffers_and_heads_of_other_tasks_are_ignored(architecture, checkpoint):
    layer = f"{STACKS[architecture]}.0"
    buffers = (
        "attn.bias",
        "attn.masked_bias",
        "attention.masked_bias",
        "self_attn.rotary_emb.inv_freq",
    )
    extra = {f"{layer}.{name}": torch.zeros(2) for name in buffers}
    load_from(
        checkpoint(lambda tensors: {**tensors, **extra, "v_head.summary.weight": torch.zeros(2)})
    )


def test_a_tied_head_need_not_be_stored(model_folder):
    assert "lm_head.weight" not in load_file(model_folder / "model.safetensors")
    load_from(model_folder)


def test_quantized_weights_are_checked_too(model_folder, tmp_path):
    pytest.importorskip("torchao", reason="the extra quantization is not installed")
    folder = shutil.copytree(model_folder, tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    save_file(
        {name: tensor for name, tensor in tensors.items() if ".layers.2." not in name},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    assert "model.layers.2." in refusal(folder, quantization="torchao-int8")
