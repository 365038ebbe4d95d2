import json
from functools import partial

import pytest
import transformers
from export import test_checkpoint
from export.test_checkpoint import saved as saved
from reference import NEW_STYLE

from ulskip_cli.core.config import compose
from ulskip_cli.core.errors import RunError, UsageError
from ulskip_cli.experiments.point import resolve

gguf = pytest.importorskip("gguf")
from ulskip_cli.export.gguf import _PATTERNS, pre_tokenizer_name  # noqa: E402 - needs gguf

export = partial(test_checkpoint.export, format="gguf")


@pytest.mark.parametrize(
    ("stored", "dtype", "expected"),
    [
        ("float32", "bfloat16", "BF16"),
        ("float32", "float16", "F16"),
        ("bfloat16", "float32", "F32"),
        ("bfloat16", "auto", "BF16"),
    ],
)
def test_a_file_equals_the_view_when_it_is_loaded(copied_model, tmp_path, stored, dtype, expected):
    to = tmp_path / "out" / "x.gguf"
    model = transformers.AutoModelForCausalLM.from_pretrained(copied_model, dtype=stored)
    model.save_pretrained(copied_model)
    record = export(copied_model, to, f"model.dtype={dtype}")
    assert "30 tensors" in record["checked"]
    assert record["dtype"] == {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}[expected]
    assert [path.name for path in to.parent.iterdir()] == ["x.gguf"]
    reader = gguf.GGUFReader(to)
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert kinds["blk.2.attn_q.weight"] == kinds["token_embd.weight"] == expected
    assert kinds["output_norm.weight"] == "F32"
    assert int(reader.get_field("llama.block_count").contents()) == 3
    assert reader.get_field("tokenizer.ggml.pre").contents() == "gpt-2"


@pytest.mark.parametrize(
    ("family", "options"),
    # transformers reads no other head size from the header of a Qwen3
    [("Qwen2", {"tie_word_embeddings": True}), ("Qwen3", {"head_dim": 128})],
)
def test_qwen_is_written_as_its_own_architecture(family, options, tokenizer, saved, tmp_path):
    # transformers adds tokens to the tokenizers of these families
    options = {**NEW_STYLE, **options, "vocab_size": len(tokenizer) + 8}
    config = getattr(transformers, f"{family}Config")(**options)
    source = saved(getattr(transformers, f"{family}ForCausalLM")(config))
    record = export(source, tmp_path / "x.gguf")
    assert "transformers loads the file" in record["checked"]
    reader = gguf.GGUFReader(tmp_path / "x.gguf")
    assert reader.get_field("general.architecture").contents() == family.lower()
    assert int(reader.get_field(f"{family.lower()}.block_count").contents()) == 3


def test_unsupported_models_are_refused_before_weights_load(copied_model, tmp_path):
    file = copied_model / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_type": "gemma2"}))
    for name in ("--format gguf", "engine=llama_cpp"):
        with pytest.raises(UsageError, match=rf"{name} does not support.*qwen3, got gemma2"):
            if name == "--format gguf":
                export(copied_model, tmp_path / "x.gguf")
            else:
                resolve(compose([f"model.path={copied_model}", name]))


def test_a_file_that_differs_from_the_view_is_deleted(model_folder, tmp_path, monkeypatch):
    writer = gguf.GGUFWriter
    real = writer.write_tensor_data
    monkeypatch.setattr(writer, "write_tensor_data", lambda self, array: real(self, array * 2))
    (tmp_path / "mine").mkdir()
    for to in ("mine", "new", "x.gguf"):
        with pytest.raises(RunError, match=r"embed_tokens.weight.*--no-check"):
            export(model_folder, tmp_path / to)
        assert not any(path.is_file() for path in tmp_path.rglob("*"))


def test_pre_tokenizer_names():
    level = {"type": "ByteLevel", "use_regex": True}
    pattern = next(text for text, name in _PATTERNS.items() if name == "qwen2")
    digits = {"type": "Digits", "individual_digits": True}
    split = {"type": "Split", "pattern": {"Regex": pattern}}
    assert pre_tokenizer_name(level) == "gpt-2"
    for first, name in ((digits, "smollm"), (split, "qwen2")):
        assert pre_tokenizer_name({"type": "Sequence", "pretokenizers": [first, level]}) == name
    with pytest.raises(UsageError, match="Whitespace"):
        pre_tokenizer_name({"type": "Whitespace"})
