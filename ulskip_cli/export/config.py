"""The config.json of a model with fewer layers, and a check that it describes the view.

Only the class, the dtype and entries about layers differ from the source's config.json, so programs
that read the source can read the export. Some models cannot be described this way: GPT-2 can scale
the attention of a layer by its index. Therefore the model of the new config is built on the meta
device and compared with the view module by module.
"""

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from ulskip_cli.core.errors import UsageError
from ulskip_cli.inference.shallow_config import first_difference, meta_model

CONFIG = "config.json"


def shallow_config(
    source: PreTrainedConfig,
    folder: Path,
    view: PreTrainedModel,
    kept: Sequence[int],
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Return the config.json of a view of the kept layers of a checkpoint.

    `source` is the config of the checkpoint in `folder`. Raises UsageError if no config can
    describe the view: its layers, or the weights that a skip adapter has changed.
    """
    values: dict[str, Any] = json.loads((folder / CONFIG).read_text("utf-8"))
    num_layers = source.get_text_config(decoder=True).num_hidden_layers
    _shorten(values, source, view.config, num_layers, kept)
    values["architectures"] = [type(view).__name__]  # it may be a part of the source's
    values["torch_dtype" if "torch_dtype" in values else "dtype"] = str(view.dtype).removeprefix(
        "torch."
    )
    rebuilt = meta_model(type(source).from_dict(copy.deepcopy(values)), trust_remote_code)
    if difference := first_difference(view, rebuilt):
        raise UsageError(
            f"{type(view).__name__} is not supported: no config describes {len(kept)} of its"
            f" {num_layers} layers ({difference}); use --format schedule"
        )
    return values


def read_config(folder: Path, trust_remote_code: bool = False) -> PreTrainedConfig:
    """Return a checkpoint's config; raise UsageError if it cannot be read or the weights are
    quantized.
    """
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            folder, trust_remote_code=trust_remote_code
        )
    except Exception as error:  # each config class of transformers checks its values in its own way
        advice = (
            "model.trust_remote_code=true to run its code"
            if "trust_remote_code" in str(error)
            else "another model"
        )
        reason = " ".join(str(error).split())[:160]
        raise UsageError(
            f"transformers cannot read {folder / CONFIG} ({reason}); use {advice}"
        ) from None
    if quantization := getattr(config, "quantization_config", None):
        raise UsageError(
            f"expected a checkpoint without quantization, got {quantization.get('quant_method')} in"
            f" {folder}; export the original checkpoint"
        )
    return config


def _shorten(
    values: dict[str, Any],
    source: PreTrainedConfig,
    view: PreTrainedConfig,
    num_layers: int,
    kept: Sequence[int],
) -> None:
    """Change `values` in place: set the number of layers, and shorten every list with one entry per
    layer.
    """
    text_source, text_view = (config.get_text_config(decoder=True) for config in (source, view))
    nested = next(
        (key for key in source.sub_configs if getattr(source, key, None) is text_source), None
    )
    text = values if nested is None else values.setdefault(nested, {})
    count = text_view.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    for key in {count, "num_hidden_layers"} & text.keys() or {count}:
        text[key] = len(kept)
    for key, value in text.items():
        if "layer" in key and isinstance(value, list) and len(value) == num_layers:
            text[key] = [value[i] for i in kept]
    derived = type(source).from_dict(copy.deepcopy(values)).get_text_config(decoder=True)
    for key, value in vars(
        text_view
    ).items():  # lists that the config class derives from the number of layers
        if (
            "layer" in key
            and isinstance(value, (list, tuple))
            and list(getattr(derived, key, None) or ()) != list(value)
        ):
            text[key] = list(value)
