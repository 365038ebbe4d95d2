"""Decide from the internals of transformers whether an architecture's layers can be skipped (see docs/architectures.md)."""

import inspect
from collections.abc import Sequence

from torch import nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin, LinearAttentionCacheLayerMixin

# Keys of a text config that make layers depend on one another.
_DEPENDENCIES = {
    "num_kv_shared_layers": "its layers depend on one another (num_kv_shared_layers), so none can be skipped",
    "hidden_size_per_layer_input": "its layers depend on one another (hidden_size_per_layer_input), so none can be skipped",
    "n_recurrent_loops": "its layers run in loops, and the config refers to them by index (n_recurrent_loops)",
    "loop_num_passes": "its layers run in loops, and the config refers to them by index (loop_num_passes)",
    "n_layers_per_attn_res_block": "its layers read the outputs of earlier blocks of layers (n_layers_per_attn_res_block)",
    "cross_attention_layers": "its cross-attention layers are named by layer index (cross_attention_layers)",
}
# Attributes of modules that reveal an unsupported behaviour.
_UNSUPPORTED_ATTRIBUTES = {
    "_setup_cache": "its layers store their state inside themselves and not in a cache",
    "layer_dic": "its layers share a block that is indexed by layer",
    "create_position_ids_from_input_ids": "its positions begin after its padding id, but generate counts from 0",
    "image_patch_tokens": "it counts image tokens before every prompt, even without an image",
}
# Config lists with one entry per layer, and the entry that marks a dependent layer.
_DEPENDENT_ENTRIES = {"indexer_types": "shared", "kv_sharing_modes": "reuse"}
# Prefixes of a layer's forward arguments that are outputs of earlier layers, besides the hidden states.
_EXTRA_INPUTS = ("prev_router", "previous_", "block_states")


def unsupported_reason(model: PreTrainedModel) -> str | None:
    """Return the reason why no layer of a causal LM can be skipped, as a sentence; None if layers can be skipped."""
    name = type(model).__name__
    if model.config.is_encoder_decoder or not model.can_generate():
        return f"{name} is not a decoder-only causal LM; expected one stack of decoder layers"
    text_config = model.config.get_text_config(decoder=True)
    for key, reason in _DEPENDENCIES.items():
        if getattr(text_config, key, None):
            return f"{name} is refused: {reason}"
    for key, borrowed in _DEPENDENT_ENTRIES.items():
        if borrowed in (getattr(text_config, key, None) or ()):
            return f"{name} is refused: some of its layers use what another layer selected or cached ({key})"
    if "cache" not in inspect.signature(model.forward).parameters or not model._supports_default_dynamic_cache():
        return f"{name} is refused: it has no cache with one entry per layer"
    for module in model.modules():
        for attribute, reason in _UNSUPPORTED_ATTRIBUTES.items():
            if hasattr(module, attribute):
                return f"{name} is refused: {reason}"
    return None


def extra_layer_inputs(layer: nn.Module) -> str | None:
    """Return the first argument of a layer that earlier layers compute, besides the hidden states; None if there is none."""
    names = inspect.signature(layer.forward).parameters
    return next((name for name in names if name.startswith(_EXTRA_INPUTS)), None)


def is_recurrent(cache: DynamicCache) -> bool:
    """Return True if some layers carry a recurrent state, which can be continued by one token at a time only."""
    return any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in cache.layers)


def is_all_recurrent(cache: DynamicCache) -> bool:
    """Return True if no layer has keys and values, so that the mask of a step covers its own tokens only."""
    return is_recurrent(cache) and not any(isinstance(layer, CacheLayerMixin) for layer in cache.layers)


def missing_attention_layers(full: DynamicCache, kept: DynamicCache, layers: Sequence[int]) -> str | None:
    """Return the reason why a hybrid model cannot run `layers`, given empty caches of it and its view; None if it can."""
    attention = [i for i, layer in enumerate(full.layers) if isinstance(layer, CacheLayerMixin)]
    if not attention or any(isinstance(layer, CacheLayerMixin) for layer in kept.layers):
        return None
    return f"expected one of the layers {attention} among those kept, got {list(layers)}: only attention counts positions"
