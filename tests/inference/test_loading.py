import json
import re
import shutil
import warnings
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from reference import NUM_LAYERS, build_model, decoder_for, reference_logits
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from ulskip_cli.core.config_schema import DecodingConfig
from ulskip_cli.core.errors import RunError, UsageError
from ulskip_cli.core.model_config import ModelConfig
from ulskip_cli.engines.decoder import DecodeContext
from ulskip_cli.inference import batching, shallow_view
from ulskip_cli.inference.loading import load


def test_a_folder_loads_with_its_tokenizer(model_folder):
    loaded = load(ModelConfig(name="hf", source="hf", path=str(model_folder), dtype="bfloat16"))
    assert loaded.model.dtype == torch.bfloat16
    assert not loaded.model.training
    assert loaded.tokenizer.padding_side == "left"
    assert loaded.metadata.num_layers == 6
    assert loaded.notes["training"] is None


def test_random_weights_follow_the_seed():
    config = ModelConfig(name="random", source="random", path="llama-12x128", dtype="float32")
    first, again, other = (load(config, seed).model.lm_head.weight for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert load(config).tokenizer is None


def test_a_folder_without_weights_or_tokenizer_is_refused(model_folder, tmp_path):
    (tmp_path / "config.json").write_text((model_folder / "config.json").read_text())
    with pytest.raises(UsageError, match=r"model\.safetensors.*model\.path"):
        load(ModelConfig(name="hf", source="hf", path=str(tmp_path)))
    (tmp_path / "model.safetensors").write_bytes((model_folder / "model.safetensors").read_bytes())
    with pytest.raises(UsageError, match=r"tokenizer.*model\.path"):
        load(ModelConfig(name="hf", source="hf", path=str(tmp_path)))


def tokens(model, kept=(0, 2, 5)):
    """Two-phase greedy tokens."""
    decoder = decoder_for(model, "strategy=custom", f"strategy.layers={list(kept)}")
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
    context = DecodeContext(DecodingConfig(name="g", max_new_tokens=6), 0)
    return decoder.generate(ids, torch.ones_like(ids), context).token_ids


def test_a_model_spread_over_devices_gives_the_same_tokens(model_folder, monkeypatch, tmp_path):
    plain = load(ModelConfig(name="hf", source="hf", path=str(model_folder), dtype="float32")).model
    parts = ("model.embed_tokens", "model.norm", "lm_head", "model.rotary_emb")
    places = dict.fromkeys(parts, "cpu")
    places |= {f"model.layers.{i}": "cpu" if i < 3 else "disk" for i in range(6)}
    spread = AutoModelForCausalLM.from_pretrained(
        model_folder, device_map=places, offload_folder=str(tmp_path), dtype=torch.float32
    )
    assert spread.model.layers[4].mlp.up_proj.weight.device.type == "meta"
    before = spread.model.layers[4].self_attn.forward
    assert tokens(spread.eval()) == tokens(plain)
    assert tokens(spread.eval(), (0, 4, 5)) == tokens(plain, (0, 4, 5))
    assert spread.model.layers[4].self_attn.forward is before  # the source is not changed


def test_int8_weights_through_torchao(model_folder):
    pytest.importorskip("torchao", reason="the extra quantization is not installed")
    config = ModelConfig(
        name="hf", source="hf", path=str(model_folder), dtype="float32", device="cpu"
    )
    plain, quantized = load(config), load(config.replace(quantization="torchao-int8"))
    assert quantized.notes["quantization"] == "torchao, int8 weights"
    assert quantized.metadata.weights.layers[0] < plain.metadata.weights.layers[0] / 2
    kept = (0, 2, 5)
    view = shallow_view.shallow_view(quantized.model, kept)
    assert (
        view.model.layers[1].mlp.up_proj.weight
        is quantized.model.model.layers[2].mlp.up_proj.weight
    )
    ids = torch.tensor([[5, 6, 7, 8]])
    expected = reference_logits(quantized.model, ids, torch.ones_like(ids), 0, kept)
    with torch.no_grad():
        torch.testing.assert_close(
            view(ids, use_cache=False).logits, expected, rtol=1e-4, atol=1e-4
        )


@pytest.fixture
def adapter(model_folder, tmp_path):
    config = ModelConfig(
        name="hf", source="hf", path=str(model_folder), dtype="float32", device="cpu"
    )
    torch.manual_seed(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lora = LoraConfig(
            r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM"
        )
        adapted = get_peft_model(load(config).model, lora)
        adapted.save_pretrained(tmp_path / "adapter")
    return config.replace(adapter=str(tmp_path / "adapter")), adapted


def test_an_adapter_is_merged_into_plain_weights(adapter):
    config, adapted = adapter
    loaded = load(config)
    assert type(loaded.model).__name__ == "LlamaForCausalLM"
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        torch.testing.assert_close(
            loaded.model(ids).logits, adapted.eval()(ids).logits, rtol=1e-4, atol=1e-4
        )
    assert not any("lora" in name for name, _ in loaded.model.named_parameters())
    assert f"the adapter {config.adapter}" in loaded.notes["training"]
    assert tokens(loaded.model) != tokens(load(config.replace(adapter=None)).model)


def test_a_broken_generation_config_is_named(model_folder, tmp_path):
    for file in model_folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "generation_config.json").unlink()
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(UsageError, match=r"generation_config\.json"):
        load(ModelConfig(name="x", source="hf", path=str(tmp_path)))


def test_random_weights_that_do_not_fit_into_memory_are_not_made(monkeypatch):
    monkeypatch.setattr(batching.psutil, "virtual_memory", lambda: SimpleNamespace(available=2**20))
    with pytest.raises(RunError, match=r"smollm2-135m.*GiB"):
        load(ModelConfig(name="random", source="random", path="smollm2-135m", device="cpu"))


@pytest.fixture(params=["llama", "bloom", "gpt2"])
def checkpoint(request, tokenizer, tmp_path):
    """A function that changes the tensors of a tiny random model, and loads it."""
    model = build_model(request.param)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    (stack,) = [name for name, part in model.named_modules() if type(part) is torch.nn.ModuleList]

    def change(rule, **keys):
        file = tmp_path / "model.safetensors"
        tensors = load_file(file)
        save_file({**tensors, **rule(tensors, stack)}, file, metadata={"format": "pt"})
        return load(ModelConfig(name="hf", source="hf", path=str(tmp_path), **keys)).model

    change.folder, change.stack = tmp_path, stack
    return change


def weight_of(tensors, prefix):
    return next(name for name in tensors if name.startswith(prefix) and "mlp" in name)


def test_tensors_of_other_shapes_or_names_are_refused_by_name(checkpoint):
    folder, stack = re.escape(str(checkpoint.folder)), re.escape(checkpoint.stack)

    def reshaped(tensors, stack):
        return {weight_of(tensors, f"{stack}.3."): torch.zeros(3, 5)}

    with pytest.raises(UsageError, match=rf"{folder}.*{stack}\.3\.mlp.*\[3, 5\]"):
        checkpoint(reshaped)
    with pytest.raises(UsageError, match=rf"{stack}\.1\.mlp\.another\.bias"):
        checkpoint(lambda tensors, stack: {f"{stack}.1.mlp.another.bias": torch.zeros(4)})


@pytest.mark.parametrize("change", [1, -1])
def test_a_config_of_another_depth_is_refused(checkpoint, change):
    file = checkpoint.folder / "config.json"
    config = json.loads(file.read_text())
    key = "num_hidden_layers" if "num_hidden_layers" in config else "n_layer"
    config.pop("layer_types", None)
    file.write_text(json.dumps({**config, key: NUM_LAYERS + change}))
    layer = min(NUM_LAYERS, NUM_LAYERS + change)
    with pytest.raises(UsageError, match=rf"{re.escape(checkpoint.stack)}\.{layer}\."):
        checkpoint(lambda tensors, stack: {})


def test_old_buffers_and_heads_of_other_tasks_are_ignored(checkpoint):
    def extended(tensors, stack):
        buffers = {f"{stack}.0.attn.bias": torch.ones(2, dtype=torch.bool)}
        names = ("attn.masked_bias", "self_attn.rotary_emb.inv_freq")
        buffers |= {f"{stack}.0.{name}": torch.zeros(2) for name in names}
        return {**buffers, "v_head.summary.weight": torch.zeros(2)}

    loaded = checkpoint(extended, dtype="float32", device="cpu").state_dict()
    original = load_file(checkpoint.folder / "model.safetensors")
    assert all(torch.equal(loaded[name], original[name]) for name in loaded.keys() & original)


@pytest.mark.parametrize("quantization", [None, "torchao-int8"])
def test_a_missing_layer_is_named(model_folder, tmp_path, quantization):
    if quantization:
        pytest.importorskip("torchao", reason="the extra quantization is not installed")
    folder = shutil.copytree(model_folder, tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    assert "lm_head.weight" not in tensors  # a tied head need not be stored
    rest = {name: tensor for name, tensor in tensors.items() if ".layers.2." not in name}
    save_file(rest, folder / "model.safetensors", metadata={"format": "pt"})
    config = ModelConfig(name="hf", source="hf", path=str(folder), quantization=quantization)
    with pytest.raises(UsageError, match=r"model\.layers\.2\."):
        load(config)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.uint8, torch.bool])
def test_weights_of_whole_numbers_are_refused_by_name(checkpoint, dtype):
    def rounded(tensors, stack):
        name = weight_of(tensors, f"{stack}.2.")
        return {name: tensors[name].to(dtype)}

    with pytest.raises(UsageError, match=rf"of whole numbers \({re.escape(checkpoint.stack)}\.2"):
        checkpoint(rounded)
