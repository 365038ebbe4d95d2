"""The header of a GGUF file, read without torch and numpy, and the models that GGUF supports.

`gguf.GGUFReader` takes 1.6 seconds for SmolLM2's vocabulary, and this reader 0.01.
"""

import math
import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from mmap import ACCESS_READ, mmap
from os import SEEK_CUR
from pathlib import Path
from typing import Any

from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.files import JsonObject
from ulskip_cli.core.weight_sizes import DTYPE_BYTES, StoredTensor

# Numbers by their type; a text begins with its length.
_NUMBERS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
_LENGTH = struct.Struct("<Q")
_TEXT, _ARRAY, _UINT32, _UINT64 = 8, 9, 4, 10
# Types that are not quantized.
_DTYPES = {0: "float32", 1: "float16", 30: "bfloat16"}
_MAX_ITEMS = 10_000  # lists of more numbers are counted, not read
# Keys of a config.json by those of the architecture in a header.
_SIZES = {
    "num_hidden_layers": "block_count",
    "hidden_size": "embedding_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "max_position_embeddings": "context_length",
    "kv_lora_rank": "attention.kv_lora_rank",
}
# Architectures that ulskip writes, by the model_type of transformers.
GGUF_ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}


def why_unsupported_by_gguf(config: JsonObject) -> str | None:
    """Return what is expected and what a config.json has if GGUF does not support the model, or
    None.
    """
    model_type, window = config.get("model_type"), config.get("sliding_window")
    activation = config.get("hidden_act", "silu")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    # Qwen's window has an effect in some layers only, and only if the config asks for it.
    uses_window = model_type == "mistral" or config.get("use_sliding_window")
    if model_type not in GGUF_ARCHITECTURES:
        return f"expected model_type={', '.join(GGUF_ARCHITECTURES)}, got {model_type}"
    if rope_type != "default":
        return f"expected rope_type=default, got {rope_type}"
    if config.get("attention_bias") or config.get("mlp_bias"):
        return "expected attention_bias=false and mlp_bias=false"
    if window and uses_window:
        return f"expected sliding_window=null, got {window}"
    if activation != "silu":
        return f"expected hidden_act=silu, got {activation}"
    return None


@dataclass(frozen=True)
class GgufHeader:
    """Sizes and tensors, as the header of a GGUF file states them."""

    config: JsonObject  # the sizes of the model and the type of its weights, as in a config.json
    tensors: Mapping[str, StoredTensor]  # with their bytes in that type


def read_gguf_header(file: Path) -> GgufHeader:
    """Read the header of a GGUF file; raise UsageError for other files, and for one of several
    parts.
    """
    state = file.stat()
    return _read(file, state.st_size, state.st_mtime_ns)


@cache
def _read(file: Path, size: int, modified: int) -> GgufHeader:
    """Read a header once, and again if the file's size or time of change (`modified`) differ."""
    try:
        with file.open("rb") as stream, mmap(stream.fileno(), 0, access=ACCESS_READ) as data:
            metadata, shapes, types = _read_header(data)
            config = {**_sizes(metadata), "dtype": _dtype(types)}
    except UsageError:
        raise
    except Exception as error:  # the file may contain anything
        raise UsageError(
            f"expected model.path to be a GGUF file, got {file} with an error"
            f" ({type(error).__name__}: {error}); download it again; `git lfs pull` replaces a"
            " git-lfs pointer"
        ) from None
    width = DTYPE_BYTES[config["dtype"]]  # after loading, not in the file
    tensors = {
        name: StoredTensor(shape, math.prod(shape) * width) for name, shape in shapes.items()
    }
    return GgufHeader(config, tensors)


def _sizes(metadata: JsonObject) -> JsonObject:
    """Return the sizes under the keys of a transformers configuration."""
    num_parts = metadata.get("split.count", 1)
    if num_parts != 1:
        raise UsageError(
            f"expected model.path to be a whole GGUF file, got one of {num_parts} parts; join them"
            " with `llama-gguf-split --merge`"
        )
    architecture = metadata["general.architecture"]
    sizes = {key: metadata.get(f"{architecture}.{name}") for key, name in _SIZES.items()}
    # Layers that predict several tokens at once are no layers of the decoder.
    sizes["num_hidden_layers"] -= metadata.get(f"{architecture}.nextn_predict_layers", 0)
    heads = sizes["num_attention_heads"]
    if isinstance(heads, list):  # one number for each layer
        sizes["num_attention_heads"] = max(heads)
    sizes["model_type"] = architecture
    sizes["vocab_size"] = metadata.get("tokenizer.ggml.tokens")  # the reader counts lists of texts
    return {key: value for key, value in sizes.items() if value is not None}


def _dtype(types: Collection[int]) -> str:
    """Return the type of torch into which these GGUF types are loaded: bfloat16 if some are
    quantized, or else the half precision among them, since such files keep norms in float32.
    """
    if any(kind not in _DTYPES for kind in types):
        return "bfloat16"
    halves = (name for kind, name in _DTYPES.items() if kind and kind in types)
    return next(halves, "float32")


def _read_header(file: mmap) -> tuple[JsonObject, dict[str, tuple[int, ...]], set[int]]:
    """Return the metadata by key, the shapes by tensor name, and the GGUF types of all tensors."""
    if file.read(4) != b"GGUF" or _number(file, _UINT32) not in (2, 3):
        raise ValueError("it does not begin as version 2 or 3 of the format")
    num_tensors, num_keys = _number(file, _UINT64), _number(file, _UINT64)
    metadata = JsonObject()
    for _ in range(num_keys):  # each has its name, type and value, in this order
        key = _text(file)
        metadata[key] = _value(file, _number(file, _UINT32))
    shapes, types, last = dict[str, tuple[int, ...]](), set[int](), 0
    for _ in range(num_tensors):  # each has its name, sizes, type and place, in this order
        name = _text(file)
        sizes = [_number(file, _UINT64) for _ in range(_number(file, _UINT32))]
        shapes[name] = tuple(reversed(sizes))  # GGUF has the innermost dimension first
        types.add(_number(file, _UINT32))
        last = max(last, _number(file, _UINT64))  # the place of its values behind the header
    if shapes and file.tell() + last >= len(file):
        raise ValueError(f"it has {len(file):,} bytes and ends before its last tensor")
    return metadata, shapes, types


def _numbers(file: mmap, kind: int, count: int) -> tuple[Any, ...]:
    form = f"<{count}{_NUMBERS[kind]}"
    return struct.unpack(form, file.read(struct.calcsize(form)))


def _number(file: mmap, kind: int) -> int:
    number: int = _numbers(file, kind, 1)[0]
    return number


def _text(file: mmap) -> str:
    return file.read(_number(file, _UINT64)).decode()


def _value(file: mmap, kind: int) -> object:
    """Read a metadata value of a GGUF type; of a long list, or one of texts, only
    the count.
    """
    if kind == _TEXT:
        return _text(file)
    if kind != _ARRAY:
        return _number(file, kind)
    element, count = _number(file, _UINT32), _number(file, _UINT64)
    if element == _TEXT:
        position = file.tell()
        for _ in range(count):  # a vocabulary has hundreds of thousands of texts
            position += _LENGTH.size + _LENGTH.unpack_from(file, position)[0]
        file.seek(position)
    elif count <= _MAX_ITEMS:
        return list(_numbers(file, element, count))
    else:
        file.seek(count * struct.calcsize(f"<{_NUMBERS[element]}"), SEEK_CUR)
    return count
