import json
import re
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
import transformers
from reference import ARCHITECTURES, NUM_LAYERS, build_model, random_ids
from safetensors.torch import load_file, save_file
from tiny_configs import build_config

from ulskip_cli.core.config import compose
from ulskip_cli.core.errors import RunError, UsageError
from ulskip_cli.export import checkpoint
from ulskip_cli.export.export_run import ExportRequest, run_export
from ulskip_cli.inference.shallow_view import shallow_view

KEPT = (0, 3, 5)


@pytest.fixture
def saved(tmp_path, tokenizer):
    """A folder for a model of tests/reference.py, in several files, with a tokenizer."""

    def save(model, **options):
        folder = tmp_path / "source"
        model.save_pretrained(folder, **{"max_shard_size": "30KB", **options})
        tokenizer.save_pretrained(folder)
        return folder

    return save


def export(source, to, *overrides, layers="[0,3,5]", **options):
    request = ExportRequest(to, **options)
    given = [f"model.path={source}", "strategy=custom", f"strategy.layers={layers}", *overrides]
    return run_export(compose(given, command=f"export --format {request.format}"), request)


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_an_export_loads_alone_and_is_the_view(name, saved, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "MAX_FILE", "20KB")
    model = build_model(name)
    source, to = saved(model), tmp_path / "out"
    if name == "gpt2":  # no config describes its scales
        with pytest.raises(UsageError, match=r"GPT2LMHeadModel.*scaling="):
            export(source, to, "prompt_layers=kept")
        assert not to.exists()
        return
    record = export(source, to, "prompt_layers=kept")
    assert "bit-identical" in record["checked"]
    exported = transformers.AutoModelForCausalLM.from_pretrained(to).eval()
    assert exported.config.get_text_config().num_hidden_layers == len(KEPT)
    ids = random_ids(2, 9)
    with torch.no_grad():
        assert torch.equal(exported(ids).logits, shallow_view(model, KEPT)(ids).logits)
    assert transformers.AutoTokenizer.from_pretrained(to)("the cat").input_ids
    assert sorted(path.name for path in to.parent.iterdir()) == ["out", "source"]


def test_the_text_part_of_a_larger_model_is_exported_as_a_causal_lm(saved, tmp_path):
    text = build_config("qwen3_5_text")
    vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2}
    vision["out_hidden_size"] = text.hidden_size
    config = transformers.Qwen3_5Config(text_config=text.to_dict(), vision_config=vision)
    source = saved(transformers.Qwen3_5ForConditionalGeneration(config))
    record = export(source, tmp_path / "out", "prompt_layers=kept")
    assert "bit-identical" in record["checked"]
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["Qwen3_5ForCausalLM"]


def test_wider_weights_are_narrowed_and_tied_ones_written_once(model_folder, tmp_path):
    to = tmp_path / "out"
    record = export(model_folder, to, "prompt_layers=kept", "model.dtype=bfloat16")
    tensors = load_file(to / "model.safetensors")
    assert "lm_head.weight" not in tensors
    assert "Training of the weights: not recorded." in (to / "README.md").read_text()
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert json.loads((to / "config.json").read_text())["dtype"] == "bfloat16"
    assert "bit-identical" in record["checked"]


@pytest.mark.parametrize("has_chat", [True, False])
def test_the_card_uses_the_chat_template_of_the_model(copied_model, tmp_path, has_chat):
    to = tmp_path / "out"
    if has_chat:
        (copied_model / "chat_template.jinja").write_text("{{ messages[0].content }}")
    options = ["model.chat_options={thinks: false}"] * has_chat
    overrides = ["prompt_layers=kept", "task=cnn_dm", "task.metrics=[rouge]", *options]
    record = export(copied_model, to, *overrides)
    card = (to / "README.md").read_text()
    assert ("apply_chat_template" in card) is ("thinks=False" in card) is has_chat
    code = card.split("```python\n")[1].split("```")[0]
    exec(code.replace('"."', repr(str(to))), {})  # prints an answer
    assert f"ulskip run task=cnn_dm strategy=full model.path={to}" in record["next"]


def test_the_code_in_serving_md_generates_the_tokens_of_a_run(model_folder, tmp_path):
    from ulskip_cli.api import generate

    to = tmp_path / "pair"
    assert export(model_folder, to)["prefill"] == "prefill"
    model = transformers.AutoModelForCausalLM.from_pretrained(to / "prefill").eval()
    assert model.config.num_hidden_layers == NUM_LAYERS
    (code,) = re.findall(r"```python\n(.*?)```", (to / "SERVING.md").read_text(), re.DOTALL)
    names = {}
    exec(code.replace('FOLDER, KEPT = ".",', f"FOLDER, KEPT = {str(to)!r},"), names)
    tokenizer = transformers.AutoTokenizer.from_pretrained(to)
    for text in ("the cat sat", "der Hund schläft im Haus"):
        (expected,) = generate(model, tokenizer, [text], KEPT, max_new_tokens=8)
        assert names["answer"](text, 8) == expected.token_ids


def test_the_servers_of_a_pair_find_their_weights(model_folder, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "integrations" / "vllm")
    from ulskip_vllm.pair_export import PairExport, SetupError

    to = tmp_path / "pair"
    export(model_folder, to)
    pair = PairExport.read(to)
    assert (pair.kept_layers, pair.num_layers) == (KEPT, NUM_LAYERS)
    for role in ("prefill", "decode", "serve"):
        pair.check_model(role, pair.model(role))
    file = to / "prefill" / "model.safetensors"
    tensors = load_file(file)
    name = min(tensors)
    save_file({**tensors, name: tensors[name] + 1}, file, {"format": "pt"})
    with pytest.raises(SetupError, match=str(to)):
        pair.check_model("prefill", to / "prefill")
    alone = export(model_folder, tmp_path / "alone", "prompt_layers=kept")
    assert set(alone["weights_digest"]) == {"decode"}
    with pytest.raises(SetupError, match="pair"):
        PairExport.read(tmp_path / "alone")


def test_an_export_can_be_exported_but_not_onto_itself(model_folder, tmp_path):
    source = tmp_path / "source"
    export(model_folder, source, "prompt_layers=kept")
    full = compose([f"model.path={source}", "strategy=full"], command="export --format hf")
    run_export(full, ExportRequest(tmp_path / "again"))
    files = [tmp_path / name / "model.safetensors" for name in ("source", "again")]
    assert files[0].read_bytes() == files[1].read_bytes()
    for around in (source, tmp_path):  # the export would replace the folder
        with pytest.raises(UsageError, match=f"--to.*{around}"):
            run_export(full, ExportRequest(around))


def test_an_export_that_differs_from_the_view_is_deleted(model_folder, tmp_path, monkeypatch):
    real = transformers.LlamaForCausalLM.save_pretrained

    def save(model, folder, **options):
        state = model.state_dict()
        state["model.norm.weight"] = 2 * state["model.norm.weight"]
        real(model, folder, state_dict=state, **options)

    monkeypatch.setattr(transformers.LlamaForCausalLM, "save_pretrained", save)
    with pytest.raises(RunError, match="logits"):
        export(model_folder, tmp_path / "out", "prompt_layers=kept")
    assert not any(tmp_path.iterdir())
    record = export(model_folder, tmp_path / "out", "prompt_layers=kept", check=False)
    assert "--no-check" in record["checked"]


def test_logits_are_not_compared_without_enough_memory(model_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=0))
    for check, told in ((None, "do not fit into memory"), (True, "bit-identical")):
        record = export(model_folder, tmp_path / "out", "prompt_layers=kept", check=check)
        assert told in record["checked"]


def test_a_model_with_code_of_its_own_is_refused(copied_model, tmp_path):
    file = copied_model / "config.json"
    config = json.loads(file.read_text())
    classes = {"AutoConfig": "configuration_own.OwnConfig"}
    classes["AutoModelForCausalLM"] = "modeling_own.OwnModel"
    config |= {"auto_map": classes, "model_type": "own", "architectures": ["OwnModel"]}
    file.write_text(json.dumps(config))
    with pytest.raises(UsageError, match=r"custom code.*use another model"):
        export(copied_model, tmp_path / "out", "prompt_layers=kept")
