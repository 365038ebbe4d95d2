import shutil
import warnings
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from reference import build_model, decoder_for, random_adapter
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from ulskip_cli.core.config_schema import DecodingConfig
from ulskip_cli.core.errors import RunError, UsageError
from ulskip_cli.core.model_config import ModelConfig
from ulskip_cli.engines.decoder import DecodeContext
from ulskip_cli.inference import batching
from ulskip_cli.inference.loading import load, load_tokenizer


def saved(folder, **changes):
    """The settings of a saved model."""
    settings = {"dtype": "float32", "device": "cpu", **changes}
    return ModelConfig(name="hf", source="hf", path=str(folder), **settings)


def test_a_folder_loads_with_its_tokenizer(model_folder):
    config = saved(model_folder, dtype="bfloat16")
    loaded = load(config)
    assert loaded.model.dtype == torch.bfloat16
    assert not loaded.model.training
    assert load_tokenizer(config).padding_side == "left"
    assert loaded.metadata.num_layers == 6
    assert loaded.notes["training"] is None


def test_random_weights_follow_the_seed():
    config = ModelConfig(name="random", source="random", path="llama-12x128", dtype="float32")
    first, again, other = (load(config, seed).model.lm_head.weight for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert load_tokenizer(config) is None


def tokens(model, kept=(0, 2, 5)):
    """Two-phase greedy tokens."""
    decoder = decoder_for(model, "strategy=custom", f"strategy.layers={list(kept)}")
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
    context = DecodeContext(DecodingConfig(name="g", max_new_tokens=6), 0)
    return decoder.generate(ids, torch.ones_like(ids), context).token_ids


def test_a_model_spread_over_devices_gives_the_same_tokens(model_folder, monkeypatch, tmp_path):
    plain = load(saved(model_folder)).model
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
    kept, ids = (0, 2, 4), torch.tensor([[5, 6, 7, 8]])
    patched, _ = random_adapter(plain, kept, "full")
    with torch.no_grad():
        expected, got = (patched.view(model, kept)(ids).logits for model in (plain, spread))
    torch.testing.assert_close(got, expected)
    adapted, _ = random_adapter(plain, kept, "lora")
    with pytest.raises(UsageError, match=r"device_map=null"):
        adapted.view(spread, kept)


def test_an_adapter_is_merged_into_plain_weights(model_folder, tmp_path):
    torch.manual_seed(3)
    options = {"target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lora = LoraConfig(r=4, init_lora_weights=False, **options)
        adapted = get_peft_model(load(saved(model_folder)).model, lora)
        adapted.save_pretrained(tmp_path)
    loaded, ids = load(saved(model_folder, adapter=str(tmp_path))), torch.tensor([[5, 6, 7]])
    assert type(loaded.model).__name__ == "LlamaForCausalLM"
    with torch.no_grad():
        expected, got = adapted.eval()(ids).logits, loaded.model(ids).logits
        plain = load(saved(model_folder)).model(ids).logits
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(got, plain, atol=1e-2)
    assert not any("lora" in name for name, _ in loaded.model.named_parameters())
    assert f"the adapter {tmp_path}" in loaded.notes["training"]


def test_random_weights_that_do_not_fit_into_memory_are_not_made(monkeypatch):
    monkeypatch.setattr(batching.psutil, "virtual_memory", lambda: SimpleNamespace(available=2**20))
    with pytest.raises(RunError, match=r"smollm2-135m.*GiB"):
        load(ModelConfig(name="random", source="random", path="smollm2-135m", device="cpu"))


@pytest.fixture
def folder(model_folder, tmp_path):
    """A copy of the saved model, to be changed."""
    return shutil.copytree(model_folder, tmp_path / "model")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("model.safetensors", r"model\.safetensors.*model\.path"),
        ("tokenizer.json", r"tokenizer.*model\.path"),
        ("generation_config.json", r"generation_config\.json"),
    ],
)
def test_a_missing_or_broken_file_is_named(folder, name, reason):
    (folder / name).unlink()
    if name == "generation_config.json":
        (folder / name).write_text("{")
    with pytest.raises(UsageError, match=reason):
        load(saved(folder))
        load_tokenizer(saved(folder))


LAYER, UP = "model.layers.2.", "model.layers.2.mlp.up_proj.weight"


def replace_tensors(folder, change):
    """Save other tensors in a folder: a dictionary made from those that it has."""
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def without_layer(found):
    return {name: tensor for name, tensor in found.items() if LAYER not in name}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda found: {**found, UP: torch.zeros(3, 5)}, rf"{UP}.*\[3, 5\]"),
        (lambda found: {**found, f"{LAYER}mlp.another.bias": torch.zeros(4)}, "mlp.another.bias"),
        (without_layer, LAYER),
    ],
    ids=["shape", "unknown", "missing"],
)
def test_tensors_that_do_not_fit_are_refused_by_name(folder, change, reason):
    replace_tensors(folder, change)
    with pytest.raises(UsageError, match=reason):
        load(saved(folder))


@pytest.mark.parametrize("name", ["bloom", "gpt2"])
def test_old_buffers_and_heads_of_other_tasks_are_ignored(name, folder):
    model = build_model(name)
    model.save_pretrained(folder)
    (stack,) = [name for name, part in model.named_modules() if type(part) is torch.nn.ModuleList]
    others = {f"{stack}.0.attn.bias": torch.ones(2, dtype=torch.bool)}
    others |= {f"{stack}.0.attn.masked_bias": torch.zeros(2)}
    others |= {f"{stack}.0.self_attn.rotary_emb.inv_freq": torch.zeros(2)}
    others |= {"v_head.summary.weight": torch.zeros(2)}
    replace_tensors(folder, lambda found: {**found, **others})
    loaded, expected = load(saved(folder)).model.state_dict(), model.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())
