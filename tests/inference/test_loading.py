import importlib.util
import json
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from reference import reference_logits
from transformers import AutoModelForCausalLM

from ulskip_cli.core.config import compose
from ulskip_cli.core.config_schema import DecodingConfig
from ulskip_cli.core.errors import RunError, UsageError
from ulskip_cli.core.model_config import ModelConfig
from ulskip_cli.core.model_metadata import ModelMetadata
from ulskip_cli.engines.decoder import DecodeContext, Decoder
from ulskip_cli.inference import batching, loading, shallow_view
from ulskip_cli.inference.loading import load, load_tokenizer, pick_device, training_note
from ulskip_cli.strategies.plan import make_plan


def test_a_folder_loads_with_its_tokenizer(model_folder):
    loaded = load(ModelConfig(name="hf", source="hf", path=str(model_folder), dtype="bfloat16"))
    assert loaded.model.dtype == torch.bfloat16
    assert not loaded.model.training
    assert loaded.tokenizer.padding_side == "left"
    assert loaded.metadata.num_layers == 6
    assert "not stated" in loaded.notes["training"]


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no list of mapped files")
def test_weights_are_mapped_and_not_read(model_folder):
    model = load(ModelConfig(name="hf", source="hf", path=str(model_folder), dtype="float32")).model
    lines = [
        line.split()
        for line in Path("/proc/self/maps").read_text().splitlines()
        if str(model_folder) in line
    ]
    mapped = [[int(end, 16) for end in line[0].split("-")] for line in lines]
    for name, parameter in model.named_parameters():
        assert any(begin <= parameter.data_ptr() < end for begin, end in mapped), name


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
    config = ModelConfig(
        name="random", source="random", path=str(tmp_path / "shape.json"), dtype="float32"
    )
    first, again, other = (load(config, seed).model.lm_head.weight for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert load(config).tokenizer is None


@pytest.mark.parametrize("model_type", [{}, {"model_type": "nonsense"}, {"model_type": "vit"}])
def test_configs_without_a_causal_lm_are_refused(tmp_path, model_type):
    (tmp_path / "shape.json").write_text(json.dumps({"num_hidden_layers": 3, **model_type}))
    with pytest.raises(UsageError, match="model_type"):
        load(
            ModelConfig(
                name="random", source="random", path=str(tmp_path / "shape.json"), dtype="float32"
            )
        )


def test_a_folder_without_weights_or_tokenizer_is_refused(model_folder, tmp_path):
    (tmp_path / "config.json").write_text((model_folder / "config.json").read_text())
    with pytest.raises(UsageError, match=r"model\.safetensors.*model\.path"):
        load(ModelConfig(name="hf", source="hf", path=str(tmp_path)))
    (tmp_path / "model.safetensors").write_bytes((model_folder / "model.safetensors").read_bytes())
    with pytest.raises(UsageError, match=r"tokenizer.*model\.path"):
        load(ModelConfig(name="hf", source="hf", path=str(tmp_path)))


def tokens(model, kept=(0, 2, 5)):
    """Two-phase greedy tokens."""
    metadata = ModelMetadata(6, None, None)
    plan = make_plan(
        compose(["strategy=custom", f"strategy.layers=[{','.join(map(str, kept))}]"]), metadata
    )
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
    decoding = DecodingConfig(name="g", max_new_tokens=6)
    return (
        Decoder(model, plan)
        .generate(ids, torch.ones_like(ids), DecodeContext(decoding, 0))
        .token_ids
    )


def test_a_model_spread_over_devices_gives_the_same_tokens(model_folder, monkeypatch, tmp_path):
    plain = load(ModelConfig(name="hf", source="hf", path=str(model_folder), dtype="float32")).model
    places = {
        "model.embed_tokens": "cpu",
        "model.norm": "cpu",
        "lm_head": "cpu",
        "model.rotary_emb": "cpu",
    }
    places |= {f"model.layers.{i}": "cpu" if i < 3 else "disk" for i in range(6)}
    spread = AutoModelForCausalLM.from_pretrained(
        model_folder, device_map=places, offload_folder=str(tmp_path), dtype=torch.float32
    )
    assert spread.model.layers[4].mlp.up_proj.weight.device.type == "meta"
    before = spread.model.layers[4].self_attn.forward
    assert tokens(spread.eval()) == tokens(plain)
    assert tokens(spread.eval(), (0, 4, 5)) == tokens(plain, (0, 4, 5))
    assert spread.model.layers[4].self_attn.forward is before  # the source is not changed


def test_a_device_map_that_fits_one_device_is_plain(model_folder):
    loaded = load(
        ModelConfig(
            name="hf", source="hf", path=str(model_folder), dtype="float32", device_map="auto"
        )
    )
    assert loaded.model.device.type == pick_device("auto").type


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


@pytest.mark.parametrize(
    ("name", "package"), [("torchao-int8", "torchao"), ("bnb-nf4", "bitsandbytes")]
)
def test_a_missing_quantizer_is_named(model_folder, monkeypatch, name, package):
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    with pytest.raises(UsageError, match=rf"model\.quantization={name}.*pip install {package}"):
        load(ModelConfig(name="hf", source="hf", path=str(model_folder), quantization=name))


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
    assert f"then the adapter {config.adapter}" in loaded.notes["training"]
    assert tokens(loaded.model) != tokens(load(config.replace(adapter=None)).model)


def test_an_adapter_is_kept_separate_from_quantized_weights(adapter):
    pytest.importorskip("torchao", reason="the extra quantization is not installed")
    config, _ = adapter
    loaded = load(config.replace(quantization="torchao-int8"))
    assert any("lora" in name for name, _ in loaded.model.named_parameters())
    assert len(tokens(loaded.model)) == 2


def test_an_adapter_of_another_model_is_refused_in_one_line(model_folder, tmp_path):
    (tmp_path / "adapter_config.json").write_text(
        '{"peft_type": "LORA", "target_modules": ["nothing"], "r": 4}'
    )
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(UsageError, match=r"model\.adapter=") as caught:
        load(ModelConfig(name="hf", source="hf", path=str(model_folder), adapter=str(tmp_path)))
    assert "\n" not in str(caught.value)


def test_the_tokenizer_alone(model_folder):
    assert (
        load_tokenizer(ModelConfig(name="hf", source="hf", path=str(model_folder))).padding_side
        == "left"
    )
    assert load_tokenizer(ModelConfig(name="random", source="random", path="smollm2-135m")) is None


def test_a_tokenizer_that_is_loaded_already_is_used(model_folder, monkeypatch):
    config = ModelConfig(name="hf", source="hf", path=str(model_folder), dtype="float32")
    tokenizer = load_tokenizer(config)
    monkeypatch.setattr(
        loading, "load_tokenizer", lambda config: pytest.fail("the tokenizer was loaded again")
    )
    assert load(config, tokenizer=tokenizer).tokenizer is tokenizer


def test_devices():
    assert pick_device("auto").type in ("cpu", "cuda", "mps")
    with pytest.raises(UsageError, match=r"model\.device=nonsense"):
        pick_device("nonsense")
    with pytest.raises(UsageError, match=r"model\.device=meta"):
        pick_device("meta")


def test_the_training_note_describes_the_training_record(tmp_path):
    record = {"strategy": "unified", "kept_counts": [12, 6], "steps": 10}
    (tmp_path / "training.json").write_text(json.dumps(record))
    assert (
        training_note(str(tmp_path))
        == "with skipping: unified, kept counts 12, 6 drawn per step, 10 steps"
    )
    longer = {
        **record,
        "steps": 5,
        "based_on": {
            "strategy": "unified",
            "steps": 10,
            "based_on": {"strategy": "full", "steps": 9},
        },
    }
    (tmp_path / "training.json").write_text(json.dumps(longer))
    assert training_note(str(tmp_path)).endswith(
        ", 15 steps"
    )  # those without skipping are not counted


@pytest.mark.parametrize(
    "change",
    [
        *(
            {"steps": "many"},
            {"strategy": []},
            {"kept_counts": 3},
            {"exits": "abc"},
            {"later_stages": [1]},
        ),
        *({"kept_layers": {"2": "x"}}, {"ratios": "x"}, {"based_on": {"x": 1}}),
    ],
    ids=str,
)
def test_a_training_record_of_other_types_is_named(change, tmp_path):
    record = {"strategy": "unified", "kept_counts": [12, 6], "steps": 10, **change}
    (tmp_path / "training.json").write_text(json.dumps(record))
    with pytest.raises(UsageError, match=rf"{next(iter(change))}.*training\.json"):
        training_note(str(tmp_path))
    for content in ("{", "[1]", '{"strategy": "unified"}'):
        (tmp_path / "training.json").write_text(content)
        with pytest.raises(UsageError, match=r"training\.json"):
            training_note(str(tmp_path))


@pytest.mark.parametrize(
    "content", ["{", "[1]", '{"eos_token_id": "x"}', '{"eos_token_id": [1, "x"]}']
)
def test_an_odd_generation_config_is_named(content, model_folder, tmp_path):
    for file in model_folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "generation_config.json").unlink()
    (tmp_path / "generation_config.json").write_text(content)
    with pytest.raises(UsageError, match=r"generation_config\.json"):
        load(ModelConfig(name="x", source="hf", path=str(tmp_path)))


def test_random_weights_that_do_not_fit_into_memory_are_not_made(monkeypatch):
    monkeypatch.setattr(batching.psutil, "virtual_memory", lambda: SimpleNamespace(available=2**20))
    with pytest.raises(RunError, match=r"smollm2-135m.*GiB"):
        load(ModelConfig(name="random", source="random", path="smollm2-135m", device="cpu"))


def test_the_note_on_a_training_is_one_line(tmp_path):
    record = {"strategy": "x\n# Model\x1b[31m", "steps": 3, "kept_counts": [6, 3]}
    (tmp_path / "training.json").write_text(json.dumps(record))
    assert (
        training_note(str(tmp_path))
        == r"with skipping: x # Model\x1b[31m, kept counts 6, 3 drawn per step, 3 steps"
    )
