"""A KV cache in preallocated buffers, and attention masks made ahead; it depends on the internals of transformers."""

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
    """The number of filled positions in the buffers, shared by all layers."""

    length: int
    # the length as a tensor [1], for compiled steps
    index: Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.long))
    # its length is the number of positions that a compiled step reads
    seen: Tensor = field(default_factory=lambda: torch.zeros(0))


class FixedLayer(CacheLayerMixin):  # type: ignore[misc]
    """The keys and values of one layer, [batch, heads, capacity, head_dim]; a step writes to them and reads the filled part."""

    is_sliding = False

    def __init__(self, source: DynamicLayer, capacity: int, cursor: Cursor) -> None:
        """Copy the prompt's keys and values; the earlier positions of a sliding layer stay empty and are masked."""
        super().__init__()
        self.cursor = cursor
        held = source.keys.shape[-2]
        self.keys, self.values = (_buffer(tensor, capacity, cursor.length - held) for tensor in (source.keys, source.values))
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Do nothing; the buffers exist already."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write one step; the caller moves the cursor after all layers have written."""
        start, end = self.cursor.length, self.cursor.length + key_states.shape[-2]
        self.keys[:, :, start:end], self.values[:, :, start:end] = key_states, value_states
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return length and offset of the keys that a query attends to."""
        return self.cursor.length + query_length, 0

    def get_seq_length(self) -> int:
        """Return the number of filled positions."""
        return self.cursor.length

    def get_max_length(self) -> int:
        """Return the capacity of the buffers."""
        return int(self.keys.shape[-2])

    def keep_sequences(self, alive: Tensor) -> None:
        """Keep the sequences `alive` only."""
        self.keys, self.values = self.keys[alive], self.values[alive]


class StaticLayer(FixedLayer):
    """A fixed layer for compiled steps: tensors give the write position and the read length; a mask hides empty positions."""

    def filled(self, length: int) -> DynamicLayer:
        """Return the first positions as a layer over the same memory."""
        layer = DynamicLayer()
        layer.keys, layer.values = self.keys[:, :, :length], self.values[:, :, :length]
        layer.is_initialized = True
        return layer

    def begin(self, source: DynamicLayer) -> None:
        """Copy the keys and values of another prompt."""
        start = self.cursor.length - source.keys.shape[-2]
        for buffer, held in ((self.keys, source.keys), (self.values, source.values)):
            buffer[:, :, :start] = 0
            buffer[:, :, start : self.cursor.length] = held
            buffer[:, :, self.cursor.length :] = 0

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write one step at the cursor's index."""
        self.keys.index_copy_(2, self.cursor.index, key_states)
        self.values.index_copy_(2, self.cursor.index, value_states)
        end = self.cursor.seen.shape[0]
        return self.keys[:, :, :end], self.values[:, :, :end]


class UnplacedLayer(StaticLayer):
    """A static layer for models without position ids, which build their masks from the padding mask only."""

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return length and offset of the keys that a step reads."""
        return self.cursor.seen.shape[0], 0

    def get_seq_length(self) -> int:
        """Return the last position, so that the causal mask hides no key."""
        return self.get_max_length() - 1


def fixed(cache: DynamicCache, capacity: int) -> tuple[DynamicCache, Cursor]:
    """Convert a cache in place to fixed buffers of a capacity; TypeError if it holds other things than keys and values."""
    if not can_fix(cache):
        raise TypeError("expected a cache of keys and values only; use decoding.engine=transformers")
    cursor = Cursor(cache.get_seq_length())
    for i, layer in enumerate(cache.layers):
        cache.layers[i] = FixedLayer(layer, capacity, cursor)  # frees the old tensors layer by layer
    return cache, cursor


def can_fix(cache: DynamicCache) -> bool:
    """Return True if all layers of a cache hold keys and values and nothing else."""
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers)


def step_masks(model: PreTrainedModel, cache: DynamicCache, attention_mask: Tensor, new_tokens: int) -> Masks:
    """Make the attention masks of all steps after a prompt with the mask [batch, prompt_len], which `cache` holds.

    They are additive, [batch, 1, new_tokens, prompt_len + new_tokens], or None if no position is masked. Models with several
    attention types get a mapping from type to mask.
    """
    batch, dtype = attention_mask.shape[0], model.dtype
    ahead = attention_mask.new_ones(batch, new_tokens)
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
    """Make the masks of steps that read whole buffers, [batch, 1, new_tokens, capacity], never None."""
    batch, prompt_len = attention_mask.shape
    least = torch.finfo(model.dtype).min
    masks = step_masks(model, cache, attention_mask, new_tokens)

    def whole(mask: Tensor | None) -> Tensor:
        full = torch.full((batch, 1, new_tokens, capacity), least, dtype=model.dtype, device=attention_mask.device)
        seen = full[..., : prompt_len + new_tokens]
        if mask is None:  # causal only
            ahead = torch.ones(new_tokens, prompt_len + new_tokens, dtype=torch.bool, device=full.device)
            seen.masked_fill_(ahead.tril(prompt_len), 0)
        else:
            seen.copy_(mask)
        return full

    return {kind: whole(mask) for kind, mask in masks.items()} if isinstance(masks, Mapping) else whole(masks)


def mask_at(masks: Masks, step: int, length: int, count: int = 1) -> Masks:
    """Return the mask of `count` steps in one pass; the last step attends to the first `length` positions."""
    return _indexed(masks, (slice(None), slice(None), slice(step, step + count), slice(length)))


def masks_of(masks: Masks, alive: Tensor) -> Masks:
    """Return the masks of the sequences `alive`."""
    return _indexed(masks, alive)


def _indexed(masks: Masks, index: Any) -> Masks:
    if isinstance(masks, Mapping):
        return {kind: None if mask is None else mask[index] for kind, mask in masks.items()}
    return None if masks is None else masks[index]


def _buffer(held: Tensor, capacity: int, start: int) -> Tensor:
    batch, heads, length, width = held.shape
    buffer = held.new_empty(batch, heads, capacity, width)
    buffer[:, :, :start] = 0  # masked, but must not be NaN
    buffer[:, :, start : start + length] = held
    return buffer


def _additive(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Convert a boolean mask to an additive one: 0 for visible keys, the smallest number for hidden ones."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)
