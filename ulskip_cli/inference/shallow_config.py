"""The config of a model that runs some of another's layers."""

import copy

from transformers import PreTrainedConfig


def shallow_config(source: PreTrainedConfig, depth: int, kept: tuple[int, ...]) -> PreTrainedConfig:
    """A copy of a config that describes the kept layers: their number and every list with one entry a layer.

    Args:
        source: of a model, or of several in one.
        depth: its decoder layers.
        kept: those that remain.
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
    if any(getattr(text_config, name) != value for name, value in computed.items()):  # out of indices, which have changed
        text_config.__class__ = type(type(text_config).__name__, (type(text_config),), computed)
    return config
