"""Checks of an architecture that refuse a model whose layers cannot be skipped (see
docs/architectures.md).
"""

import inspect
from collections.abc import Iterable, Sequence

from torch import nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin, LinearAttentionCacheLayerMixin

# Keys of a text config that make layers depend on one another.
_DEPENDENCIES = {
    "num_kv_shared_layers": (
        "its layers reuse the keys and values of other layers (num_kv_shared_layers)"
    ),
    "hidden_size_per_layer_input": (
        "its layers read separate inputs selected by layer index (hidden_size_per_layer_input)"
    ),
    "n_recurrent_loops": (
        "its layers run in loops that the config defines by layer index (n_recurrent_loops)"
    ),
    "loop_num_passes": (
        "its layers run in loops that the config defines by layer index (loop_num_passes)"
    ),
    "n_layers_per_attn_res_block": (
        "its layers read the outputs of earlier blocks of layers (n_layers_per_attn_res_block)"
    ),
    "cross_attention_layers": (
        "its config selects the cross-attention layers by layer index (cross_attention_layers)"
    ),
}
# Module attributes that only unsupported architectures have.
_UNSUPPORTED_ATTRIBUTES = {
    "_setup_cache": (
        "its layers store their recurrent state in module attributes instead of a cache"
    ),
    "layer_dic": "its layers share one block that selects weights by layer index",
    "create_position_ids_from_input_ids": (
        "its position ids start after its padding id, but generate starts them at 0"
    ),
    "image_patch_tokens": "it counts image tokens before every prompt, even without an image",
}
# Config lists with one entry per layer, and the entry that marks a dependent layer.
_DEPENDENT_ENTRIES = {"indexer_types": "shared", "kv_sharing_modes": "reuse"}
# Prefixes of a layer's forward arguments that are outputs of earlier layers, except the hidden
# states.
_EXTRA_INPUTS = ("prev_router", "previous_", "block_states")


def unsupported_reason(model: PreTrainedModel) -> str | None:
    """Return the reason why layers of a model cannot be skipped, or None if they can be skipped."""
    if model.config.is_encoder_decoder or not model.can_generate():
        return "it is not a decoder-only causal LM"
    text_config = model.config.get_text_config(decoder=True)
    for key, reason in _DEPENDENCIES.items():
        if getattr(text_config, key, None):
            return reason
    for key, borrowed in _DEPENDENT_ENTRIES.items():
        if borrowed in (getattr(text_config, key, None) or ()):
            return (
                "some layers reuse the token selection or the keys and values of another layer"
                f" ({key})"
            )
    if (
        "cache" not in inspect.signature(model.forward).parameters
        or not model._supports_default_dynamic_cache()
    ):
        return "it has no cache with one entry per layer"
    for module in model.modules():
        for attribute, reason in _UNSUPPORTED_ATTRIBUTES.items():
            if hasattr(module, attribute):
                return reason
    return None


def dependent_layers(layers: Iterable[nn.Module]) -> str | None:
    """Return a reason if layers take an argument, besides the hidden states, that earlier layers
    compute; else None.
    """
    for layer in layers:
        for name in inspect.signature(layer.forward).parameters:
            if name.startswith(_EXTRA_INPUTS):
                return f"each layer reads a further output of the layer before it ({name})"
    return None


def is_recurrent(cache: DynamicCache) -> bool:
    """Return True if some layers have a recurrent state, which can be continued only one token at a
    time.
    """
    return any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in cache.layers)


def is_all_recurrent(cache: DynamicCache) -> bool:
    """Return True if no layer has keys and values; the attention mask of a step then covers only
    the new tokens.
    """
    return is_recurrent(cache) and not any(
        isinstance(layer, CacheLayerMixin) for layer in cache.layers
    )


def missing_attention_layers(
    full: DynamicCache, kept: DynamicCache, layers: Sequence[int]
) -> str | None:
    """Return an error text (or None) if `layers` have no attention layer; `full` and `kept` are
    caches of model and view.
    """
    attention = [i for i, layer in enumerate(full.layers) if isinstance(layer, CacheLayerMixin)]
    if not attention or any(isinstance(layer, CacheLayerMixin) for layer in kept.layers):
        return None
    return (
        f"expected an attention layer among the kept layers, got {list(layers)}; "
        f"add one of {attention}, because only attention layers count positions"
    )
