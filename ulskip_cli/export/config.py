"""The config of a model with fewer layers, checked against the view without weights.

The source's own config.json is kept and only its entries about layers change, so that every program that reads the source
reads the export. Some models cannot be expressed this way: GPT-2 can scale the attention of a layer by its position.
Therefore the model of the new config and the view are both built on the meta device and compared module by module.
"""

import copy
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from ulskip_cli.core.errors import UsageError
from ulskip_cli.inference import shallow_view

CONFIG = "config.json"
_PLAIN_TYPES = (bool, int, float, str, type(None))
_NOT_COMPARED = ("layer_idx", "name_or_path")  # a view renumbers its layers as the rebuilt model does


def shallow_config(
    folder: Path, kept: Sequence[int], dtype: str | None, trust_remote_code: bool = False
) -> tuple[dict[str, Any], int]:
    """Return the config.json of a model that has only the kept layers of a checkpoint, and the checkpoint's number of layers.

    `dtype` is the one in which the export will be loaded; None keeps the source's.

    Raises:
        UsageError: the source cannot be read, is quantized, or its config cannot express the view.
    """
    try:
        source = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (ValueError, KeyError, OSError, ImportError) as error:
        code = " (its code runs with model.trust_remote_code=true)" if "trust_remote_code" in str(error) else ""
        raise UsageError(f"transformers cannot read {folder / CONFIG}{code}: {str(error).split(chr(10))[0][:160]}") from None
    values = json.loads((folder / CONFIG).read_text("utf-8"))
    if values.get("quantization_config"):
        raise UsageError("export takes plain weights, and this checkpoint is quantized; export the one that it was made of")
    full = _meta_model(source, trust_remote_code)
    num_layers = shallow_view.num_layers(full)
    view = shallow_view.shallow_view(full, kept)
    _shorten(values, source, view.config, num_layers, kept)
    if dtype is not None:
        values["torch_dtype" if "torch_dtype" in values else "dtype"] = dtype
    rebuilt = _meta_model(type(source).from_dict(copy.deepcopy(values)), trust_remote_code)
    if difference := first_difference(view, rebuilt):
        raise UsageError(
            f"{type(view).__name__} cannot be exported: a model of {len(kept)} layers built from its config differs from the "
            f"view of {len(kept)} of {num_layers} ({difference})"
        )
    return values, num_layers


def first_difference(view: nn.Module, rebuilt: nn.Module) -> str | None:
    """Describe the first tensor shape, module type or plain attribute in which two models differ."""
    expected, found = (dict(_properties(model)) for model in (view, rebuilt))
    for key in expected | found:
        if expected.get(key) != found.get(key):
            return f"{key} is {expected.get(key)} in the view and {found.get(key)} in the rebuilt model"
    return None


def _properties(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the shape of every tensor, and the type and the plain attributes of every module."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):  # of the whole model: tied tensors count once
        yield name, list(tensor.shape)
    for path, module in model.named_modules():
        yield path, type(module).__name__
        for key, value in vars(module).items():
            if isinstance(value, _PLAIN_TYPES) and key not in _NOT_COMPARED and not key.startswith("_"):
                yield f"{path}.{key}", value


def _shorten(
    values: dict[str, Any], source: PreTrainedConfig, view: PreTrainedConfig, num_layers: int, kept: Sequence[int]
) -> None:
    """Change the number of layers, and every list with one entry a layer, in place."""
    text_source, text_view = (config.get_text_config(decoder=True) for config in (source, view))
    nested = next((key for key in source.sub_configs if getattr(source, key, None) is text_source), None)
    text = values if nested is None else values.setdefault(nested, {})
    count = text_view.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    for key in {count, "num_hidden_layers"} & text.keys() or {count}:
        text[key] = len(kept)
    for key, value in text.items():
        if "layer" in key and isinstance(value, list) and len(value) == num_layers:
            text[key] = [value[i] for i in kept]
    derived = type(source).from_dict(copy.deepcopy(values)).get_text_config(decoder=True)
    for key, value in vars(text_view).items():  # lists that the class derives from the number of layers
        if "layer" in key and isinstance(value, (list, tuple)) and list(getattr(derived, key, None) or ()) != list(value):
            text[key] = list(value)


def _meta_model(config: PreTrainedConfig, trust_remote_code: bool) -> PreTrainedModel:
    """Build a model on the meta device, which allocates no weights."""
    try:
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    except Exception as error:
        reason = str(error).strip().split("\n")[0][:200]
        raise UsageError(f"cannot build a {type(config).__name__} on the meta device to compare with ({reason})") from error
    return model
