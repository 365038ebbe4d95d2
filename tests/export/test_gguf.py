import pytest
import transformers

from ulskip_cli.core.config import compose
from ulskip_cli.core.errors import RunError, UsageError
from ulskip_cli.export.run import ExportRequest
from ulskip_cli.export.run import export as run_export

gguf = pytest.importorskip("gguf")
from ulskip_cli.export.gguf import pre_tokenizer_name  # noqa: E402 - needs gguf

OVERRIDES = ["strategy=custom", "strategy.layers=[0,3,5]"]


def export(source, to, *overrides, **options):
    given = [f"model.path={source}", *OVERRIDES, *overrides]
    config = compose(given, command="export --format gguf")
    return run_export(config, ExportRequest(to, "gguf", **options))


@pytest.mark.parametrize(
    ("stored", "dtype", "expected"),
    [
        ("float32", "bfloat16", "BF16"),
        ("float32", "float16", "F16"),
        ("bfloat16", "float32", "F32"),
        ("bfloat16", "auto", "BF16"),
    ],
)
def test_a_file_equals_the_view_when_it_is_loaded(model_folder, tmp_path, stored, dtype, expected):
    source, to = tmp_path / "source", tmp_path / "out" / "x.gguf"
    model = transformers.AutoModelForCausalLM.from_pretrained(model_folder, dtype=stored)
    model.save_pretrained(source)
    transformers.AutoTokenizer.from_pretrained(model_folder).save_pretrained(source)
    record = export(source, to, f"model.dtype={dtype}")
    assert "30 tensors" in record["checked"]
    assert record["dtype"] == {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}[expected]
    assert [path.name for path in to.parent.iterdir()] == ["x.gguf"]
    reader = gguf.GGUFReader(to)
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert kinds["blk.2.attn_q.weight"] == kinds["token_embd.weight"] == expected
    assert kinds["output_norm.weight"] == "F32"
    assert int(reader.get_field("llama.block_count").contents()) == 3
    assert reader.get_field("tokenizer.ggml.pre").contents() == "gpt-2"


def test_a_file_that_differs_from_the_view_is_deleted(model_folder, tmp_path, monkeypatch):
    real = gguf.GGUFWriter.write_tensor_data
    monkeypatch.setattr(
        gguf.GGUFWriter, "write_tensor_data", lambda writer, array: real(writer, array * 2)
    )
    (tmp_path / "mine").mkdir()
    for to in ("mine", "new", "x.gguf"):
        with pytest.raises(RunError, match=r"embed_tokens.weight.*--no-check"):
            export(model_folder, tmp_path / to)
        assert [path.name for path in tmp_path.rglob("*")] == ["mine"]


def test_pre_tokenizer_names():
    level = {"type": "ByteLevel", "use_regex": True}
    assert pre_tokenizer_name(level) == "gpt-2"
    assert (
        pre_tokenizer_name(
            {
                "type": "Sequence",
                "pretokenizers": [{"type": "Digits", "individual_digits": True}, level],
            }
        )
        == "smollm"
    )
    with pytest.raises(UsageError, match="Whitespace"):
        pre_tokenizer_name({"type": "Whitespace"})
