"""The config of a view, and a check that a config describes a view, module by module.

Some views cannot be described by a config: GPT-2 can scale the attention of a layer by its index.
"""

import copy
from collections.abc import Iterator

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from ulskip_cli.core.errors import UsageError

# A view renumbers its layers, as the rebuilt model does.
_NOT_COMPARED = ("layer_idx", "name_or_path", "training")


def shallow_config(source: PreTrainedConfig, depth: int, kept: tuple[int, ...]) -> PreTrainedConfig:
    """Copy a config of `depth` layers; reduce the number of layers and every per-layer list to the
    kept layers.
    """
    config = copy.deepcopy(source)
    text_config = config.get_text_config(decoder=True)
    per_layer = {
        name: type(value)(value[i] for i in kept)
        for name, value in vars(text_config).items()
        if "layer" in name and isinstance(value, (list, tuple)) and len(value) == depth
    }
    computed = {
        name: [value[i] for i in kept]
        for name in dir(type(text_config))
        if "layer" in name and isinstance(getattr(type(text_config), name), property)
        if isinstance(value := getattr(text_config, name, None), (list, tuple))
        and len(value) == depth
    }
    for name, value in {"num_hidden_layers": len(kept), **per_layer}.items():
        setattr(text_config, name, value)
    # A property may compute its list from layer indices, and the view renumbers its layers.
    if any(getattr(text_config, name) != value for name, value in computed.items()):
        text_config.__class__ = type(type(text_config).__name__, (type(text_config),), computed)
    return config


def first_difference(view: nn.Module, rebuilt: nn.Module) -> str | None:
    """Describe the first tensor shape, module type or plain attribute in which two models
    differ.
    """
    expected, got = (dict(_properties(model)) for model in (view, rebuilt))
    for key in expected | got:
        if expected.get(key) != got.get(key):
            return f"expected {key}={expected.get(key)}, got {got.get(key)}"
    return None


def _properties(model: nn.Module) -> Iterator[tuple[str, object]]:
    """Yield the shape of every tensor, and the type and plain attributes of every module."""
    # Of the whole model, so that tied tensors count once.
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        yield name, list(tensor.shape)
    for path, module in model.named_modules():
        yield path, type(module).__name__
        for key, value in vars(module).items():
            is_plain = isinstance(value, bool | int | float | str | None)
            if is_plain and key not in _NOT_COMPARED and not key.startswith("_"):
                yield f"{path}.{key}", value


def meta_model(config: PreTrainedConfig, trust_remote_code: bool) -> PreTrainedModel:
    """Return a model without weights; raise UsageError if the config's model class cannot be built
    that way.
    """
    try:
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(
                config, trust_remote_code=trust_remote_code
            )
    except Exception as error:
        reason = str(error).strip().split("\n")[0][:200]
        raise UsageError(
            f"cannot build the model of a {type(config).__name__} without weights ({reason}); use"
            " --format schedule to export, and engine=torch in a run"
        ) from error
    return model
