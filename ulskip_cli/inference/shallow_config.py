"""Derive the config of a view from the config of its model."""

import copy

from transformers import PreTrainedConfig


def shallow_config(source: PreTrainedConfig, depth: int, kept: tuple[int, ...]) -> PreTrainedConfig:
    """Copy a config and adapt the number of layers and every list with one entry per layer to the kept layers.

    Args:
        source: the config of a model; it may contain several.
        depth: the number of its decoder layers.
        kept: the kept layers.
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
        if isinstance(value := getattr(text_config, name, None), (list, tuple)) and len(value) == depth
    }
    for name, value in {"num_hidden_layers": len(kept), **per_layer}.items():
        setattr(text_config, name, value)
    if any(
        getattr(text_config, name) != value for name, value in computed.items()
    ):  # computed from layer indices, which have changed
        text_config.__class__ = type(type(text_config).__name__, (type(text_config),), computed)
    return config
