import struct

import pytest
from reference import hf

from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.gguf_header import read_gguf_header
from ulskip_cli.core.model_metadata import ModelFolder

gguf = pytest.importorskip("gguf")
np = pytest.importorskip("numpy")


def written(file, kinds=("F32", "BF16"), **metadata):
    """Write a file of two layers with the smallest header that models have."""
    writer = gguf.GGUFWriter(file, "qwen2")
    writer.add_block_count(2)
    writer.add_embedding_length(32)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_context_length(64)
    writer.add_token_list(["a", "b", "c"])
    for key, value in metadata.items():
        writer.add_uint32(key.replace("_", "."), value)
    names = ["token_embd", "output_norm", *[f"blk.{i}.ffn_up" for i in range(2)]]
    for i, name in enumerate(names):
        kind = gguf.GGMLQuantizationType[kinds[i % len(kinds)]]
        rows = 3 if name == "token_embd" else 8
        data = gguf.quants.quantize(np.ones((rows, 32), np.float32), kind)
        writer.add_tensor(f"{name}.weight", data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def test_a_file_that_was_cut_off_is_refused(tmp_path):
    file = written(tmp_path / "x.gguf")
    file.write_bytes(file.read_bytes()[:-1200])  # the last tensor, of 8 rows
    with pytest.raises(UsageError, match=r"ends before its last tensor.*download it again"):
        read_gguf_header(file)


@pytest.mark.parametrize(
    ("kinds", "dtype"),
    [
        (["F32"], "float32"),
        (["F32", "F16"], "float16"),
        (["F32", "BF16"], "bfloat16"),
        (["F32", "Q8_0"], "bfloat16"),
    ],
)
def test_a_header_tells_the_sizes_of_the_model(tmp_path, kinds, dtype):
    header = read_gguf_header(written(tmp_path / "x.gguf", kinds))
    sizes = {"num_hidden_layers": 2, "hidden_size": 32, "vocab_size": 3}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    assert header.config == {"model_type": "qwen2", "dtype": dtype, **sizes, **heads}
    shape, size = header.tensors["blk.1.ffn_up.weight"]
    assert shape == (8, 32)
    assert size == 8 * 32 * (4 if dtype == "float32" else 2)


@pytest.mark.parametrize("folder", [False, True])
def test_metadata_of_a_file_and_of_its_folder(tmp_path, folder):
    file = written(tmp_path / "x.gguf")
    path = tmp_path if folder else file
    metadata = ModelFolder(hf(path, dtype="float32")).metadata
    assert (metadata.num_layers, metadata.context) == (2, 64)
    assert metadata.total_bytes == 4 * 32 * (3 + 3 * 8)
    assert metadata.kv_bytes_per_layer == 2 * 2 * 8 * 4
    assert metadata.weights is not None
    if folder:
        written(tmp_path / "y.gguf")
        with pytest.raises(UsageError, match=r"x\.gguf, y\.gguf; set model\.path=FILE"):
            _ = ModelFolder(hf(path)).metadata


def test_parts_and_damaged_files_are_refused(tmp_path):
    file = written(tmp_path / "x.gguf", split_count=3)
    with pytest.raises(UsageError, match=r"one of 3 parts.*llama-gguf-split --merge"):
        read_gguf_header(file)
    data = written(file).read_bytes()
    for damaged in (b"", b"GGUF", b"PK" + data[2:], data[:100]):
        file.write_bytes(damaged)
        with pytest.raises(UsageError, match=r"expected model\.path to be a GGUF file"):
            read_gguf_header(file)
    for at in range(4, 200):  # no damage asks for more memory than the file has
        file.write_bytes(data[:at] + struct.pack("<Q", 2**60) + data[at + 8 :])
        try:
            read_gguf_header(file)
        except UsageError as error:
            assert "GGUF file" in str(error)
