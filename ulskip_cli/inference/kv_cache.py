"""KV caches of views, which have an entry for each layer of the view. This module depends on the
internals of transformers.
"""

import copy
from collections.abc import Sequence

from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin, DynamicLayer, LinearAttentionCacheLayerMixin

from ulskip_cli.core.schedule import Layers


def new_cache(model: PreTrainedModel) -> DynamicCache:
    """Return an empty cache with the layer types of `model`."""
    return DynamicCache(config=model.config)


def prune_cache(cache: DynamicCache, places: Sequence[int]) -> None:
    """Keep the keys and values at some places of the unpruned cache, and drop all others; raise
    ValueError if one was dropped before. `places` are stored as an attribute of the cache.
    """
    held: Layers = getattr(cache, "places", tuple(range(len(cache.layers))))
    # in place: `generate` keeps a reference to the cache
    cache.layers = [cache.layers[held.index(place)] for place in places]
    cache.places = tuple(places)


def fork_cache(cache: DynamicCache, places: Sequence[int]) -> DynamicCache:
    """Return a second cache with the keys and values at some `places`; new tokens in it do not
    change `cache`.
    """
    fork = copy.copy(cache)
    prune_cache(fork, places)  # gives the fork a list of layers of its own
    fork.layers = [_forked(layer) for layer in fork.layers]
    return fork


def _forked(layer: object) -> object:
    """Return a copy of a cache's layer that can be continued without a change of the layer."""
    fork = copy.copy(layer)
    for name, held in vars(layer).items():
        # Dicts hold recurrent states, which are updated in place; keys and values are not.
        if isinstance(held, dict):
            states = {
                key: state.clone() if isinstance(state, Tensor) else state
                for key, state in held.items()
            }
            setattr(fork, name, states)
    return fork


def filled_cache(states: Sequence[Tensor]) -> DynamicCache:
    """Return a cache filled from keys, values, keys, values, ... by layer; sliding-window layers
    keep all positions too.
    """
    cache = DynamicCache()
    for keys, values in zip(states[::2], states[1::2], strict=True):
        layer = DynamicLayer()
        layer.keys, layer.values, layer.is_initialized = keys, values, True
        cache.layers.append(layer)
    return cache


def kv_bytes(cache: DynamicCache, layers: Sequence[int] | None = None) -> int:
    """Return the bytes of keys, values and recurrent states in the given `layers` of a cache, or in
    all layers.
    """
    chosen = cache.layers if layers is None else [cache.layers[i] for i in layers]
    tensors = [getattr(layer, name, None) for layer in chosen for name in ("keys", "values")]
    # Layers of linear attention hold their recurrent states in dictionaries.
    states = [
        state
        for layer in chosen
        for attribute in vars(layer).values()
        if isinstance(attribute, dict)
        for state in attribute.values()
    ]
    return sum(tensor.nbytes for tensor in [*tensors, *states] if isinstance(tensor, Tensor))


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
