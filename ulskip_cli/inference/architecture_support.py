"""Which architectures run some of their layers as they run all of them, and which are refused, by reason.

Like `views.py` it knows the insides of transformers. What it says is measured, architecture by architecture, in
docs/architectures.md.
"""

import inspect
from collections.abc import Sequence

from torch import nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin, LinearAttentionCacheLayerMixin

# Keys of a text config that say how layers hang together; a layer that is skipped would be missed by others.
_TIES = {
    "num_kv_shared_layers": "its layers depend on one another (num_kv_shared_layers), so none can be skipped",
    "hidden_size_per_layer_input": "its layers depend on one another (hidden_size_per_layer_input), so none can be skipped",
    "n_recurrent_loops": "its layers run in loops that are named by their places (n_recurrent_loops)",
    "loop_num_passes": "its layers run in loops that are named by their places (loop_num_passes)",
    "n_layers_per_attn_res_block": "its layers read what blocks of layers before them put out (n_layers_per_attn_res_block)",
    "cross_attention_layers": "its layers that look at images are named by their places (cross_attention_layers)",
}
# Attributes of modules that give a habit away.
_HABITS = {
    "_setup_cache": "its layers keep what they remember of a prompt to themselves",
    "layer_dic": "its layers share a block that knows them by their places",
    "create_position_ids_from_input_ids": "its positions begin behind its padding id, and generate counts from 0",
    "image_patch_tokens": "it counts the tokens of an image before every prompt, whether there is one or not",
}
# Ties in lists with a word for every layer.
_BORROWED = {"indexer_types": "shared", "kv_sharing_modes": "reuse"}
# Arguments of a layer's forward pass that come from layers before it, beside the hidden states.
_FROM_BEFORE = ("prev_router", "previous_", "block_states")


def unsupported_reason(model: PreTrainedModel) -> str | None:
    """The reason for which no layer of a causal LM can be skipped, to be read after its name; None where there is none."""
    name = type(model).__name__
    if model.config.is_encoder_decoder or not model.can_generate():
        return f"{name} is not a decoder-only causal LM; expected one stack of decoder layers"
    text_config = model.config.get_text_config(decoder=True)
    for key, reason in _TIES.items():
        if getattr(text_config, key, None):
            return f"{name} is refused: {reason}"
    for key, borrowed in _BORROWED.items():
        if borrowed in (getattr(text_config, key, None) or ()):
            return f"{name} is refused: some of its layers use what another one chose or cached ({key})"
    if "cache" not in inspect.signature(model.forward).parameters or not model._supports_default_dynamic_cache():
        return f"{name} is refused: what it remembers of a prompt is no cache with a part for every layer"
    for module in model.modules():
        for attribute, reason in _HABITS.items():
            if hasattr(module, attribute):
                return f"{name} is refused: {reason}"
    return None


def extra_layer_inputs(layer: nn.Module) -> str | None:
    """What a layer takes from layers before it besides the hidden states; None where that is nothing."""
    names = inspect.signature(layer.forward).parameters
    return next((name for name in names if name.startswith(_FROM_BEFORE)), None)


def is_recurrent(cache: DynamicCache) -> bool:
    """Whether some layers carry a state from token to token, which they take up for one token at a time."""
    return any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in cache.layers)


def is_all_recurrent(cache: DynamicCache) -> bool:
    """Whether no layer looks back at keys and values, so that a step is masked by its own tokens alone."""
    return is_recurrent(cache) and not any(isinstance(layer, CacheLayerMixin) for layer in cache.layers)


def missing_attention_layers(full: DynamicCache, kept: DynamicCache, layers: Sequence[int]) -> str | None:
    """What a model of several kinds of layers lacks when some of them are gone; None where it lacks nothing.

    Args:
        full: an empty cache of the model.
        kept: one of the view.
        layers: that the view keeps.
    """
    attention = [i for i, layer in enumerate(full.layers) if isinstance(layer, CacheLayerMixin)]
    if not attention or any(isinstance(layer, CacheLayerMixin) for layer in kept.layers):
        return None
    return f"expected one of the layers {attention} among those kept, got {list(layers)}: only attention counts positions"
