"""Keys and values in buffers that are made once, and the masks of all steps made ahead.

With `views.py` the only file that knows the insides of transformers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin, DynamicLayer, DynamicSlidingWindowLayer
from transformers.masking_utils import create_masks_for_generate

Masks = Tensor | Mapping[str, Tensor | None] | None


@dataclass
class Cursor:
    """How much of every layer's buffers is filled; one for all layers.

    Attributes:
        length: positions filled.
        index: the same as a tensor [1], for compiled steps.
        seen: [positions that such a step reads], for its shape alone.
    """

    length: int
    index: Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.long))
    seen: Tensor = field(default_factory=lambda: torch.zeros(0))


class FixedLayer(CacheLayerMixin):  # type: ignore[misc]
    """One layer's keys and values, [batch, heads, capacity, head_dim]; a step writes into them and reads what is filled."""

    is_sliding = False

    def __init__(self, source: DynamicLayer, capacity: int, cursor: Cursor) -> None:
        """Take over what the prompt left; a sliding layer's earlier positions stay empty, its mask hides them."""
        super().__init__()
        self.cursor = cursor
        held = source.keys.shape[-2]
        self.keys, self.values = (_buffer(tensor, capacity, cursor.length - held) for tensor in (source.keys, source.values))
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing is left to do."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write one step; the cursor moves when all layers have written."""
        start, end = self.cursor.length, self.cursor.length + key_states.shape[-2]
        self.keys[:, :, start:end] = key_states
        self.values[:, :, start:end] = value_states
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the keys that a query sees."""
        return self.cursor.length + query_length, 0

    def get_seq_length(self) -> int:
        """Positions filled so far."""
        return self.cursor.length

    def get_max_length(self) -> int:
        """Positions that there are."""
        return int(self.keys.shape[-2])

    def keep_sequences(self, alive: Tensor) -> None:
        """Drop the sequences that are done."""
        self.keys, self.values = self.keys[alive], self.values[alive]


class StaticLayer(FixedLayer):
    """The same for compiled steps: tensors say where to write and how much to read, a mask hides what is not filled."""

    def filled(self, length: int) -> DynamicLayer:
        """The first positions, as a layer of their own over the same memory."""
        layer = DynamicLayer()
        layer.keys, layer.values = self.keys[:, :, :length], self.values[:, :, :length]
        layer.is_initialized = True
        return layer

    def begin(self, source: DynamicLayer) -> None:
        """Take over what another prompt left."""
        start = self.cursor.length - source.keys.shape[-2]
        for buffer, held in ((self.keys, source.keys), (self.values, source.values)):
            buffer[:, :, :start] = 0
            buffer[:, :, start : self.cursor.length] = held
            buffer[:, :, self.cursor.length :] = 0

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write one step where the cursor's index says."""
        self.keys.index_copy_(2, self.cursor.index, key_states)
        self.values.index_copy_(2, self.cursor.index, value_states)
        end = self.cursor.seen.shape[0]
        return self.keys[:, :, :end], self.values[:, :, :end]


class UnplacedLayer(StaticLayer):
    """The same for models that take no positions and make their masks of the padding's: that alone says what is filled."""

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the keys that a step reads."""
        return self.cursor.seen.shape[0], 0

    def get_seq_length(self) -> int:
        """Behind every key, so that none is hidden for coming later."""
        return self.get_max_length() - 1


def fixed(cache: DynamicCache, capacity: int) -> tuple[DynamicCache, Cursor]:
    """A cache of fixed capacity that begins with what another holds.

    Raises:
        TypeError: the model caches something other than keys and values.
    """
    if not can_fix(cache):
        raise TypeError("expected a cache of keys and values")
    cursor = Cursor(cache.get_seq_length())
    layers = []
    for i, layer in enumerate(cache.layers):
        layers.append(FixedLayer(layer, capacity, cursor))
        cache.layers[i] = layers[-1]  # the old tensors are freed layer by layer
    cache.layers = layers
    return cache, cursor


def can_fix(cache: DynamicCache) -> bool:
    """Whether all of a cache's layers hold keys and values and nothing else."""
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers)


def step_masks(model: PreTrainedModel, cache: DynamicCache, attention_mask: Tensor, new_tokens: int) -> Masks:
    """The attention masks of every step to come, in the form that the model takes ready-made ones.

    Args:
        model: whose steps they are.
        cache: filled with the prompt.
        attention_mask: [batch, prompt_len], 1 for tokens, 0 for padding.
        new_tokens: how many steps.

    Returns:
        [batch, 1, new_tokens, prompt_len + new_tokens], additive; None where every step sees everything; by kind of layer
        for models that have several.
    """
    batch = attention_mask.shape[0]
    ahead = attention_mask.new_ones(batch, new_tokens)
    dtype = model.dtype
    masks = create_masks_for_generate(
        config=model.config,
        inputs_embeds=torch.zeros((), dtype=dtype, device=attention_mask.device).expand(batch, new_tokens, 1),
        attention_mask=torch.cat([attention_mask, ahead], dim=1),
        cache=cache,
        position_ids=None,
    )
    unpadded = bool(attention_mask.all())
    if isinstance(masks, dict):
        return {kind: None if unpadded and kind == "full_attention" else _additive(mask, dtype) for kind, mask in masks.items()}
    slides = getattr(model.config.get_text_config(decoder=True), "sliding_window", None) is not None
    return None if unpadded and not slides else _additive(masks, dtype)


def full_masks(
    model: PreTrainedModel, cache: DynamicCache, attention_mask: Tensor, new_tokens: int, capacity: int
) -> Tensor | dict[str, Tensor]:
    """The same for steps that read whole buffers: [batch, 1, new_tokens, capacity], never None."""
    batch, prompt_len = attention_mask.shape
    least = torch.finfo(model.dtype).min
    masks = step_masks(model, cache, attention_mask, new_tokens)

    def whole(mask: Tensor | None) -> Tensor:
        full = torch.full((batch, 1, new_tokens, capacity), least, dtype=model.dtype, device=attention_mask.device)
        seen = full[..., : prompt_len + new_tokens]
        if mask is None:  # everything up to the step itself
            ahead = torch.ones(new_tokens, prompt_len + new_tokens, dtype=torch.bool, device=full.device)
            seen.masked_fill_(ahead.tril(prompt_len), 0)
        else:
            seen.copy_(mask)
        return full

    return {kind: whole(mask) for kind, mask in masks.items()} if isinstance(masks, Mapping) else whole(masks)


def mask_at(masks: Masks, step: int, length: int, count: int = 1) -> Masks:
    """The mask of one step, or of `count` steps in one pass, of which the last sees the first `length` positions."""
    if isinstance(masks, Mapping):
        return {kind: None if mask is None else mask[:, :, step : step + count, :length] for kind, mask in masks.items()}
    return None if masks is None else masks[:, :, step : step + count, :length]


def masks_of(masks: Masks, alive: Tensor) -> Masks:
    """The masks of some of the sequences."""
    if isinstance(masks, Mapping):
        return {kind: None if mask is None else mask[alive] for kind, mask in masks.items()}
    return None if masks is None else masks[alive]


def _buffer(held: Tensor, capacity: int, start: int) -> Tensor:
    batch, heads, length, width = held.shape
    buffer = held.new_empty(batch, heads, capacity, width)
    buffer[:, :, :start] = 0  # masked, but no NaN
    buffer[:, :, start : start + length] = held
    return buffer


def _additive(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Zeros where a query sees a key, the least number elsewhere."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)
