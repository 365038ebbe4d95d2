"""The config.json of a model with fewer layers, and checks of config and tensors without weights in memory.

Only entries about layers differ from the source's config.json, so programs that read the source can read the export.
Some models cannot be described this way: GPT-2 can scale the attention of a layer by its index. Therefore the model of the new
config and the view are both built on the meta device and compared module by module.
"""

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from ulskip_cli.core.errors import UsageError
from ulskip_cli.inference import shallow_view
from ulskip_cli.inference.loading import from_pretrained, silence_transformers
from ulskip_cli.inference.model_comparison import first_difference, meta_model
from ulskip_cli.inference.weights_check import check_weights

CONFIG = "config.json"


def shallow_config(
    folder: Path, kept: Sequence[int], dtype: str | None, trust_remote_code: bool = False
) -> tuple[dict[str, Any], int]:
    """Return the config.json of a model of the kept layers of a checkpoint, and the checkpoint's number of layers.

    `dtype` is the dtype of the export; None keeps the source's dtype. Raises UsageError if the source cannot be read or is
    quantized, or if a config cannot describe the kept layers.
    """
    source = read_config(folder, trust_remote_code)
    values = json.loads((folder / CONFIG).read_text("utf-8"))
    if values.get("quantization_config"):
        method = values["quantization_config"].get("quant_method")
        raise UsageError(
            f"expected a checkpoint without quantization, got {method} in {folder}; export the original checkpoint"
        )
    full = meta_model(source, trust_remote_code)
    num_layers = shallow_view.num_layers(full)
    view = shallow_view.shallow_view(full, kept)
    _shorten(values, source, view.config, num_layers, kept)
    if dtype is not None:
        values["torch_dtype" if "torch_dtype" in values else "dtype"] = dtype
    rebuilt = meta_model(type(source).from_dict(copy.deepcopy(values)), trust_remote_code)
    if difference := first_difference(view, rebuilt):
        raise UsageError(
            f"{type(view).__name__} is not supported: no config describes {len(kept)} of its {num_layers} layers "
            f"({difference}); use --format schedule"
        )
    return values, num_layers


def read_config(folder: Path, trust_remote_code: bool = False) -> PreTrainedConfig:
    """Return the config of a checkpoint; raise UsageError if transformers cannot read it."""
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:  # each config class of transformers checks its values in its own way
        advice = "model.trust_remote_code=true to run its code" if "trust_remote_code" in str(error) else "another model"
        reason = " ".join(str(error).split())[:160]
        raise UsageError(f"transformers cannot read {folder / CONFIG} ({reason}); use {advice}") from None
    return config


def _shorten(
    values: dict[str, Any], source: PreTrainedConfig, view: PreTrainedConfig, num_layers: int, kept: Sequence[int]
) -> None:
    """Change `values` in place: set the number of layers, and shorten every list with one entry per layer."""
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
    for key, value in vars(text_view).items():  # lists that the config class derives from the number of layers
        if "layer" in key and isinstance(value, (list, tuple)) and list(getattr(derived, key, None) or ()) != list(value):
            text[key] = list(value)


def check_tensors(folder: Path, name: str, trust_remote_code: bool = False) -> None:
    """Raise UsageError if a checkpoint lacks tensors or has tensors of wrong shapes; the weights are not read."""
    silence_transformers()
    options: dict[str, Any] = {"device_map": "meta", "use_safetensors": True, "ignore_mismatched_sizes": True}
    options |= {"output_loading_info": True, "trust_remote_code": trust_remote_code}
    model, loading_info = from_pretrained(name, AutoModelForCausalLM, folder, **options)
    check_weights(model, loading_info, name)
