import json
from functools import partial

import pytest
import torch
import transformers
from export import test_checkpoint
from export.test_checkpoint import saved as saved
from reference import OLD_STYLE, build_model, hf, random_ids, save_adapter, stack_of
from safetensors.torch import load_file

from ulskip_cli.core.correction import KINDS, PATCHES
from ulskip_cli.core.errors import UsageError
from ulskip_cli.export import checkpoint
from ulskip_cli.export.export_run import summary
from ulskip_cli.inference.patch_fit import DEFAULT_RIDGE, PatchFitter
from ulskip_cli.inference.shallow_view import shallow_view
from ulskip_cli.inference.skip_adapter import Lora, SkipAdapter, zero_adapter
from ulskip_cli.tasks.encoding import EncodedExample

KEPT = (0, 1, 4)
export = partial(test_checkpoint.export, layers="[0,1,4]")
# linear layers; that of GPT-2 is square, because its weight is transposed
LINEARS = {"llama": "mlp.down_proj", "gpt2": "attn.c_proj", "bloom": "mlp.dense_4h_to_h"}


def given(folder):
    return ["correction=adapter", f"correction.path={folder}"]


def build(name):
    if name == "gpt2":  # that of tests/reference.py has scales that no config describes
        torch.manual_seed(0)
        config = transformers.GPT2Config(**OLD_STYLE, n_embd=32, n_positions=128)
        return transformers.GPT2LMHeadModel(config).eval()
    return build_model(name)


def fitted(model, kind="folded"):
    """Return an adapter with patches fitted on random tokens and LoRA on a module of layer 4."""
    patches, name, kind = {KEPT: {}}, LINEARS[model.config.model_type], KINDS[kind]
    if kind.is_folded:
        texts = [(random_ids(1, 5 + i)[0].tolist(), random_ids(1, 9)[0].tolist()) for i in range(3)]
        fitter = PatchFitter(model, [EncodedExample(*text) for text in texts], 0)
        patches = fitter.fit([KEPT], kind, DEFAULT_RIDGE).patches
    generator = torch.Generator().manual_seed(1)
    outputs, inputs = stack_of(model)[4].get_submodule(name).weight.shape
    shapes = (2, inputs), (outputs, 2)
    lora = Lora(*(torch.randn(shape, generator=generator) for shape in shapes))
    return SkipAdapter(6, kind, patches, {(4, name): lora}, {"rank": None, "lora_rank": 2})


@pytest.fixture
def stored(tmp_path, saved):
    """Return a function that saves a model and its adapter, and returns both folders."""

    def save(model, adapter, **options):
        source = saved(model, **options)
        return source, save_adapter(adapter, hf(source), tmp_path / "adapter")

    return save


@pytest.mark.parametrize("kind", ["folded", "none"])
@pytest.mark.parametrize("name", sorted(LINEARS))
def test_an_export_with_an_adapter_is_the_corrected_view(name, kind, stored, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "MAX_FILE", "20KB")
    model = build(name)
    adapter = fitted(model, kind)
    source, folder = stored(model, adapter)
    to = tmp_path / "out"
    record = export(source, to, *given(folder), "prompt_layers=kept")
    assert "bit-identical" in record["checked"]
    assert "skip adapter" in record["checked"]
    assert len(list(to.glob("*.safetensors"))) > 1
    exported = transformers.AutoModelForCausalLM.from_pretrained(to).eval()
    ids = random_ids(2, 9)
    with torch.no_grad():
        views = (exported, adapter.view(model, KEPT), shallow_view(model, KEPT))
        own, expected, plain = (one(ids).logits for one in views)
    assert torch.equal(own, expected)
    assert not torch.allclose(own, plain, atol=1e-3)
    assert json.loads((to / "ulskip_export.json").read_text())["skip_adapter"] == str(folder)
    assert f"`{folder}`" in (to / "README.md").read_text()
    assert str(folder) in "\n".join(summary(record))


def test_the_prefill_model_of_a_pair_is_not_changed(stored, tmp_path):
    model = build_model("llama")
    source, folder = stored(model, fitted(model), max_shard_size="5GB")
    export(source, tmp_path / "plain")
    export(source, tmp_path / "out", *given(folder))
    file = "prefill/model.safetensors"
    assert (tmp_path / "plain" / file).read_bytes() == (tmp_path / "out" / file).read_bytes()
    decode = [load_file(tmp_path / name / "model.safetensors") for name in ("plain", "out")]
    changed = {name for name in decode[0] if not torch.equal(decode[0][name], decode[1][name])}
    # before a gap each
    assert changed == {f"model.layers.{layer}.mlp.down_proj.weight" for layer in (1, 2)}


@pytest.mark.parametrize(("stored_as", "loaded"), [("float32", "bfloat16"), ("bfloat16", "auto")])
@pytest.mark.parametrize("form", ["hf", "gguf"])
def test_weights_are_merged_in_the_dtype_of_the_run(
    model_folder, stored, tmp_path, form, stored_as, loaded
):
    if form == "gguf":
        pytest.importorskip("gguf")
    model = transformers.AutoModelForCausalLM.from_pretrained(model_folder).eval()
    adapter = fitted(model)
    source, folder = stored(model.to(getattr(torch, stored_as)), adapter)
    overrides = [*given(folder), "prompt_layers=kept", f"model.dtype={loaded}"]
    record = export(source, tmp_path / "out", *overrides, format=form)
    assert {"hf": "bit-identical", "gguf": "tensors"}[form] in record["checked"]
    assert record["skip_adapter"] == str(folder)


@pytest.mark.parametrize("form", ["hf", "gguf"])
def test_patches_that_no_checkpoint_can_contain_are_refused(stored, tmp_path, form):
    model = build_model("llama")
    source, folder = stored(model, zero_adapter(model, [KEPT], PATCHES["full"]))
    with pytest.raises(UsageError, match=rf"--format {form}"):
        export(source, tmp_path / "out", *given(folder), format=form)
