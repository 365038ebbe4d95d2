"""The config of fewer layers, and whether a model built from it is the view.

The source's own config.json is kept and only what names layers is changed, so that what reads the source reads the
export. A config cannot say everything: GPT-2 scales a layer's attention by its place. So both models are built
without weights and held against each other, module by module.
"""

import copy
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from ulskip_cli import views
from ulskip_cli.errors import UsageError

CONFIG = "config.json"
_PLAIN = (bool, int, float, str, type(None))
_NOT_COMPARED = ("layer_idx", "name_or_path")  # a view's layers are numbered anew, as those of the rebuilt model are


def shallow_config(
    folder: Path, kept: Sequence[int], dtype: str | None, trust_remote_code: bool = False
) -> tuple[dict[str, Any], int]:
    """The source's config.json for a model of its kept layers.

    Args:
        folder: of the source.
        kept: layers, ascending.
        dtype: what the model is to be loaded in; None: what the source says.
        trust_remote_code: whether code beside the weights may run.

    Returns:
        The config, and the number of layers of the source.

    Raises:
        UsageError: a model that is built from it differs from the view; the message names where.
    """
    try:
        source = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (ValueError, KeyError, OSError, ImportError) as error:
        code = " (its code runs with model.trust_remote_code=true)" if "trust_remote_code" in str(error) else ""
        raise UsageError(f"transformers does not read {folder / CONFIG}{code}: {str(error).split(chr(10))[0][:160]}") from None
    full = _weightless(source, trust_remote_code)
    view = views.shallow_view(full, kept)
    values = json.loads((folder / CONFIG).read_text("utf-8"))
    if values.get("quantization_config"):
        raise UsageError("export takes plain weights, and this checkpoint is quantized; export the one that it was made of")
    depth = views.num_layers(full)
    _shorten(values, source, view.config, depth, kept)
    if dtype is not None:
        values["torch_dtype" if "torch_dtype" in values else "dtype"] = dtype
    rebuilt = _weightless(type(source).from_dict(copy.deepcopy(values)), trust_remote_code)
    difference = first_difference(view, rebuilt)
    if difference:
        raise UsageError(
            f"{type(view).__name__} cannot be exported: a model of {len(kept)} layers built from its config is not the view of "
            f"{len(kept)} of {depth} ({difference})"
        )
    return values, depth


def first_difference(view: nn.Module, rebuilt: nn.Module) -> str | None:
    """Where two models differ in the names or shapes of their tensors, or in a plain value that a module holds."""
    tensors = [{name: tuple(p.shape) for name, p in (*m.named_parameters(), *m.named_buffers())} for m in (view, rebuilt)]
    for name in sorted(tensors[0].keys() ^ tensors[1].keys()):
        return f"{name} is only in the {'view' if name in tensors[0] else 'rebuilt model'}"
    for name, shape in tensors[0].items():
        if shape != tensors[1][name]:
            return f"{name} has shape {list(shape)} in the view and {list(tensors[1][name])} in the rebuilt model"
    modules = dict(rebuilt.named_modules())
    for path, module in view.named_modules():
        other = modules.get(path)
        if other is None or type(other) is not type(module):
            return f"{path} is a {type(module).__name__} in the view and a {type(other).__name__} in the rebuilt model"
        for key, value, rebuilt_value in _plain_values(module, other):
            if value != rebuilt_value:
                return f"{path}.{key} is {value} in the view and {rebuilt_value} in the rebuilt model"
    return None


def _plain_values(module: nn.Module, other: nn.Module) -> Iterator[tuple[str, Any, Any]]:
    """The numbers and words of both that one of them holds."""
    held = [{key: value for key, value in vars(one).items() if isinstance(value, _PLAIN)} for one in (module, other)]
    for key in held[0].keys() | held[1].keys():
        if key not in _NOT_COMPARED and not key.startswith("_"):
            yield key, held[0].get(key), held[1].get(key)


def _shorten(values: dict[str, Any], source: PreTrainedConfig, view: PreTrainedConfig, depth: int, kept: Sequence[int]) -> None:
    """Change, in place, the number of layers and every list with one entry a layer."""
    text_view = view.get_text_config(decoder=True)
    nested = next(
        (key for key in source.sub_configs if getattr(source, key, None) is source.get_text_config(decoder=True)), None
    )
    text = values if nested is None else values.setdefault(nested, {})
    count = text_view.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    for key in {count, "num_hidden_layers"} & text.keys() or {count}:
        text[key] = len(kept)
    for key, value in text.items():
        if "layer" in key and isinstance(value, list) and len(value) == depth:
            text[key] = [value[i] for i in kept]
    said = type(source).from_dict(copy.deepcopy(values)).get_text_config(decoder=True)
    for key, value in vars(text_view).items():  # what the config works out from the number of layers, where it is not told
        if "layer" in key and isinstance(value, (list, tuple)) and list(getattr(said, key, None) or ()) != list(value):
            text[key] = list(value)


def _weightless(config: PreTrainedConfig, trust_remote_code: bool) -> PreTrainedModel:
    """A model without memory for weights."""
    try:
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    except Exception as error:
        reason = str(error).strip().split("\n")[0][:200]
        raise UsageError(f"cannot build a {type(config).__name__} without weights to compare with ({reason})") from error
    return model
