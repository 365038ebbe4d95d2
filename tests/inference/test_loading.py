from functools import partial
from types import SimpleNamespace

import pytest
import torch
from reference import build_model, hf
from safetensors.torch import load_file, save_file

from ulskip_cli.core.errors import RunError, UsageError
from ulskip_cli.core.model_metadata import ModelConfig
from ulskip_cli.inference import batching
from ulskip_cli.inference.loading import load, load_tokenizer, pick_device

saved = partial(hf, dtype="float32", device="cpu")


def test_a_folder_loads_with_its_tokenizer(model_folder):
    config = saved(model_folder, dtype="bfloat16")
    loaded = load(config)
    assert loaded.model.dtype == torch.bfloat16
    assert not loaded.model.training
    assert load_tokenizer(config).padding_side == "left"
    assert loaded.metadata.num_layers == 6
    assert loaded.notes["training"] is None


def test_random_weights_are_the_same_in_every_call_and_have_no_tokenizer():
    config = ModelConfig(name="random", source="random", path="llama-12x128", dtype="float32")
    first, again = (load(config).model.lm_head.weight for _ in range(2))
    assert torch.equal(first, again) and first.std() > 0
    with pytest.raises(UsageError, match="cannot load a tokenizer from 'llama-12x128'"):
        load_tokenizer(config)


def test_random_weights_that_do_not_fit_into_memory_are_not_made(monkeypatch):
    monkeypatch.setattr(batching.psutil, "virtual_memory", lambda: SimpleNamespace(available=2**20))
    with pytest.raises(RunError, match=r"smollm2-135m.*GiB"):
        load(ModelConfig(name="random", source="random", path="smollm2-135m", device="cpu"))


@pytest.mark.parametrize("name", ["hpu", "meta", "fpga", "cuda:99"])
def test_a_device_that_is_not_here_is_refused(name):
    with pytest.raises(UsageError, match=f"{name} is not available.*model.device=auto"):
        pick_device(name)


OTHER = '{"model_type": "other", "num_hidden_layers": 6}'


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("model.safetensors", None, r"model\.safetensors.*model\.path"),
        ("tokenizer.json", None, r"tokenizer.*model\.path"),
        ("generation_config.json", "{", r"generation_config\.json"),
        ("config.json", OTHER, r"\(The .* `other` but .* recognize this architecture\);"),
    ],
)
def test_a_missing_or_broken_file_is_named(copied_model, name, content, reason):
    (copied_model / name).unlink()
    if content:
        (copied_model / name).write_text(content)
    with pytest.raises(UsageError, match=reason):
        load(saved(copied_model))
        load_tokenizer(saved(copied_model))


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
def test_tensors_that_do_not_fit_are_refused_by_name(copied_model, change, reason):
    replace_tensors(copied_model, change)
    with pytest.raises(UsageError, match=reason):
        load(saved(copied_model))


@pytest.mark.parametrize("name", ["bloom", "gpt2"])
def test_old_buffers_and_heads_of_other_tasks_are_ignored(name, copied_model):
    model = build_model(name)
    model.save_pretrained(copied_model)
    (stack,) = [name for name, part in model.named_modules() if type(part) is torch.nn.ModuleList]
    others = {f"{stack}.0.attn.bias": torch.ones(2, dtype=torch.bool)}
    others |= {f"{stack}.0.attn.masked_bias": torch.zeros(2)}
    others |= {f"{stack}.0.self_attn.rotary_emb.inv_freq": torch.zeros(2)}
    others |= {"v_head.summary.weight": torch.zeros(2)}
    replace_tensors(copied_model, lambda found: {**found, **others})
    loaded, expected = load(saved(copied_model)).model.state_dict(), model.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())
