"""The config of a view, derived from the config of its model."""

import copy

from transformers import PreTrainedConfig


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
