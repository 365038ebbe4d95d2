"""A KV cache in preallocated buffers, and the masks and positions of all steps. Depends on the
internals of transformers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin, DynamicLayer, DynamicSlidingWindowLayer
from transformers.masking_utils import create_masks_for_generate

from ulskip_cli.core.files import Table
from ulskip_cli.inference import shallow_view

Masks = Tensor | Mapping[str, Tensor | None] | None


@dataclass
class Cursor:
    """The number of filled positions in the buffers, shared by all layers."""

    length: int
    # `length` as a tensor [1], for compiled steps
    index: Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.long))
    # a tensor whose size is the number of positions that a compiled step reads
    seen: Tensor = field(default_factory=lambda: torch.zeros(0))


class FixedLayer(CacheLayerMixin):  # type: ignore[misc]
    """The keys and values of one layer in buffers [batch, heads, capacity, head_dim]; a step reads
    the filled part.
    """

    is_sliding = False

    def __init__(self, source: DynamicLayer, capacity: int, cursor: Cursor) -> None:
        super().__init__()
        self.cursor = cursor
        self.keys, self.values = (
            held.new_empty(*held.shape[:2], capacity, held.shape[3])
            for held in (source.keys, source.values)
        )
        self.begin(source)
        self.is_initialized = True

    def begin(self, source: CacheLayerMixin) -> None:
        """Copy the keys and values before the cursor, which may be those of a sliding window."""
        end = self.cursor.length
        for buffer, states in ((self.keys, source.keys), (self.values, source.values)):
            held = states[:, :, :end]
            start = end - held.shape[2]
            buffer[:, :, :start] = 0  # masked, but must not be NaN
            buffer[:, :, start:end] = held

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Do nothing, because the buffers exist already."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Write the keys and values of a step; the caller advances the cursor after all layers."""
        start, end = self.cursor.length, self.cursor.length + key_states.shape[-2]
        self.keys[:, :, start:end], self.values[:, :, start:end] = key_states, value_states
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the number and the offset of the keys that a query attends to."""
        return self.cursor.length + query_length, 0

    def get_seq_length(self) -> int:
        """Return the number of filled positions."""
        return self.cursor.length

    def get_max_length(self) -> int:
        """Return the capacity of the buffers."""
        return int(self.keys.shape[-2])

    def keep_sequences(self, alive: Tensor) -> None:
        """Keep only the sequences with the indices `alive` [sequences]."""
        self.keys, self.values = self.keys[alive], self.values[alive]


class StaticLayer(FixedLayer):
    """A `FixedLayer` for compiled steps: write position and read length are tensors, and a mask
    hides empty positions.
    """

    def begin(self, source: CacheLayerMixin) -> None:
        """Copy the keys and values before the cursor; the positions behind it are read too."""
        super().begin(source)
        for buffer in (self.keys, self.values):
            buffer[:, :, self.cursor.length :] = 0

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Write the keys and values of one step at the cursor's index."""
        self.keys.index_copy_(2, self.cursor.index, key_states)
        self.values.index_copy_(2, self.cursor.index, value_states)
        end = self.cursor.seen.shape[0]
        return self.keys[:, :, :end], self.values[:, :, :end]


class UnplacedLayer(StaticLayer):
    """A `StaticLayer` for models without position ids; these models derive attention masks from the
    padding mask.
    """

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the number and the offset of the keys that a step reads."""
        return self.cursor.seen.shape[0], 0

    def get_seq_length(self) -> int:
        """Return the last position, so that the causal mask hides no key."""
        return self.get_max_length() - 1


def fixed(cache: DynamicCache, capacity: int) -> tuple[DynamicCache, Cursor]:
    """Convert a cache of keys and values in place to buffers of `capacity` positions."""
    cursor = Cursor(cache.get_seq_length())
    for i, layer in enumerate(cache.layers):
        cache.layers[i] = FixedLayer(
            layer, capacity, cursor
        )  # frees the old tensors layer by layer
    return cache, cursor


def can_fix(cache: DynamicCache) -> bool:
    """Return True if all layers of a cache contain only keys and values."""
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers)


def step_masks(
    model: PreTrainedModel, cache: DynamicCache, attention_mask: Tensor, new_tokens: int
) -> Masks:
    """Return the attention masks of all steps after the prompt in `cache`; `attention_mask` is
    [batch, prompt_len].

    The masks are additive, [batch, 1, new_tokens, prompt_len + new_tokens], or None if no position
    is masked. For a model with several attention types, the result maps each type to a mask.
    """
    batch, dtype = attention_mask.shape[0], model.dtype
    ahead = attention_mask.new_ones(batch, new_tokens)
    masks = create_masks_for_generate(
        config=model.config,
        inputs_embeds=torch.zeros((), dtype=dtype, device=attention_mask.device).expand(
            batch, new_tokens, 1
        ),
        attention_mask=torch.cat([attention_mask, ahead], dim=1),
        cache=cache,
        position_ids=None,
    )
    unpadded = bool(attention_mask.all())
    if isinstance(masks, dict):
        return {
            kind: None if unpadded and kind == "full_attention" else _additive(mask, dtype)
            for kind, mask in masks.items()
        }
    slides = getattr(model.config.get_text_config(decoder=True), "sliding_window", None) is not None
    return None if unpadded and not slides else _additive(masks, dtype)


def full_masks(
    model: PreTrainedModel,
    cache: DynamicCache,
    attention_mask: Tensor,
    new_tokens: int,
    capacity: int,
) -> Tensor | dict[str, Tensor]:
    """Return the masks [batch, 1, new_tokens, capacity] of steps that read whole buffers; never
    None.
    """
    batch, prompt_len = attention_mask.shape
    least = torch.finfo(model.dtype).min
    masks = step_masks(model, cache, attention_mask, new_tokens)

    def whole(mask: Tensor | None) -> Tensor:
        full = torch.full(
            (batch, 1, new_tokens, capacity), least, dtype=model.dtype, device=attention_mask.device
        )
        seen = full[..., : prompt_len + new_tokens]
        if mask is None:  # causal only
            ahead = torch.ones(
                new_tokens, prompt_len + new_tokens, dtype=torch.bool, device=full.device
            )
            seen.masked_fill_(ahead.tril(prompt_len), 0)
        else:
            seen.copy_(mask)
        return full

    return (
        {kind: whole(mask) for kind, mask in masks.items()}
        if isinstance(masks, Mapping)
        else whole(masks)
    )


class PositionsAndMasks:
    """The position ids and masks of a batch for passes over one token or, with `several`, over
    several tokens.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        cache: DynamicCache,
        mask: Tensor,
        steps: int,
        several: bool,
    ) -> None:
        """Prepare positions and masks of `steps` tokens after the prompt; `mask` [batch,
        prompt_len] is the prompt's mask.
        """
        self.prompt_len = mask.shape[1]
        self._single: Masks = None
        self._several: Masks = None
        self._positions: Tensor | None = None
        if shallow_view.takes_positions(model):
            self._positions = mask.sum(1, keepdim=True) + torch.arange(steps, device=mask.device)
            if steps:
                self._single = step_masks(model, cache, mask, steps)
            if steps and several:
                self._several = full_masks(model, cache, mask, steps, self.prompt_len + steps)
        self._mask = torch.cat([mask, mask.new_ones(len(mask), steps)], dim=1)

    def options(self, start: int, count: int) -> Table:
        """Return the arguments of a forward pass over `count` tokens from index `start` of the
        padded sequence on.
        """
        step, end = start - self.prompt_len, start + count
        if self._positions is None:
            return {"attention_mask": self._mask[:, :end]}
        masks = self._single if count == 1 else self._several
        positions = self._positions[:, step : step + count]
        mask = _indexed(masks, (..., slice(step, step + count), slice(end)))
        return {"attention_mask": mask, "position_ids": positions}

    def drop_finished(self, alive: Tensor) -> None:
        """Keep only the sequences with the indices `alive` [sequences]."""
        self._single = _indexed(self._single, alive)
        self._several = _indexed(self._several, alive)
        self._positions = None if self._positions is None else self._positions[alive]
        self._mask = self._mask[alive]


def _indexed(masks: Masks, index: Any) -> Masks:
    if isinstance(masks, Mapping):
        return {kind: None if mask is None else mask[index] for kind, mask in masks.items()}
    return None if masks is None else masks[index]


def _additive(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    if mask is None or mask.dtype != torch.bool:
        return mask
    # 0 for visible keys, the smallest number for hidden ones
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(
        ~mask, torch.finfo(dtype).min
    )
