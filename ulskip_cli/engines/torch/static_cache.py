"""A KV cache in preallocated buffers, and the masks and positions of steps. Depends on the
internals of transformers.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.masking_utils import create_masks_for_generate

from ulskip_cli.inference import kv_cache, shallow_view

# Steps whose masks are held at once: the masks of all steps grow with the square of their number.
MASKED_STEPS = 256


@dataclass
class Cursor:
    """The number of filled positions in the buffers, shared by all layers."""

    length: int


class FixedLayer(DynamicLayer):  # type: ignore[misc]
    """The keys and values of one layer in buffers [batch, heads, capacity, head_dim]; a step reads
    the filled part.
    """

    def __init__(self, source: DynamicLayer, capacity: int, cursor: Cursor) -> None:
        """Copy the keys and values of a layer, which end at the cursor, into larger buffers."""
        super().__init__()
        self.cursor = cursor
        self.keys = self._buffer(source.keys, capacity)
        self.values = self._buffer(source.values, capacity)
        self.is_initialized = True  # transformers leaves other layers out of its counts

    def _buffer(self, states: Tensor, capacity: int) -> Tensor:
        """Return a buffer with `states` [batch, heads, held, head_dim] in front of the cursor; a
        sliding window holds fewer positions than are filled.
        """
        batch, heads, held, head_dim = states.shape
        buffer = states.new_empty(batch, heads, capacity, head_dim)
        end = self.cursor.length
        buffer[:, :, : end - held] = 0  # masked, but must not be NaN
        buffer[:, :, end - held : end] = states
        return buffer

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Write the keys and values of a step; the caller advances the cursor after all layers."""
        start, end = self.cursor.length, self.cursor.length + key_states.shape[-2]
        self.keys[:, :, start:end], self.values[:, :, start:end] = key_states, value_states
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_seq_length(self) -> int:
        """Return the number of filled positions."""
        return self.cursor.length


def unsupported_by_loop(model: PreTrainedModel) -> str | None:
    """Return the property of a model that our loop does not support, or None."""
    implementation = shallow_view.text_config(model)._attn_implementation
    if implementation not in ("sdpa", "eager"):
        return f"the attention implementation {implementation}"
    kinds = set(map(type, kv_cache.new_cache(model).layers))
    if not kinds <= {DynamicLayer, DynamicSlidingWindowLayer}:
        return "a cache with states other than keys and values"
    return None


def step_masks(
    model: PreTrainedModel, cache: DynamicCache, mask: Tensor, steps: int
) -> dict[str, Tensor]:
    """Return the additive masks [batch, 1, steps, seen + steps] of steps after the positions in
    `cache`, by attention type; a model with one type has the key "". `mask` [batch, seen] is the
    padding mask of these positions.
    """
    config = copy.deepcopy(shallow_view.text_config(model))
    config._attn_implementation = "eager"  # whose masks are additive and never None
    masks = create_masks_for_generate(
        config=config,
        inputs_embeds=mask.new_zeros(len(mask), steps, 1, dtype=model.dtype),
        attention_mask=functional.pad(mask, (0, steps), value=1),
        cache=cache,
    )
    return masks if isinstance(masks, dict) else {"": masks}


def mask_argument(masks: Mapping[str, Tensor | None]) -> object:
    """Return the masks of `step_masks` as a model takes them: by attention type, or alone."""
    return masks.get("", masks)


class PositionsAndMasks:
    """The position ids and masks of a batch for passes over one or several tokens."""

    def __init__(
        self, model: PreTrainedModel, cache: DynamicCache, mask: Tensor, steps: int
    ) -> None:
        """Prepare positions and masks of `steps` tokens after the prompt in `cache`; `mask` [batch,
        prompt_len] is the prompt's mask.
        """
        self._model, self._cache, self.prompt_len = model, cache, mask.shape[1]
        # of the prompt and all steps
        self.mask = torch.cat([mask, mask.new_ones(len(mask), steps)], dim=1)
        self._masks: dict[str, Tensor] = {}  # by attention type, of the held steps
        self._held = range(0)  # their indices in the padded sequence
        self.unmasked: set[str] = set()  # attention types without a mask for one token
        self._positions: Tensor | None = None  # [batch, steps]; None with ALiBi
        if not shallow_view.takes_positions(model):
            return
        self._positions = mask.sum(1, keepdim=True) + torch.arange(steps, device=mask.device)
        if steps:
            self._hold(self.prompt_len, 1)
        if mask.all():  # one token of full attention needs no mask
            full_attention = {"full_attention"}
            if getattr(shallow_view.text_config(model), "sliding_window", None) is None:
                full_attention.add("")  # the only type of a model, which does not slide
            self.unmasked = full_attention & self._masks.keys()

    def options(self, start: int, count: int) -> dict[str, Any]:
        """Return the arguments of a forward pass over `count` tokens from index `start` of the
        padded sequence on, where the cache ends: the padding mask for models with ALiBi, else masks
        by attention type and position ids.
        """
        step, end = start - self.prompt_len, start + count
        if self._positions is None:
            return {"attention_mask": self.mask[:, :end]}
        positions = self._positions[:, step : step + count]
        unmasked = self.unmasked if count == 1 else set()
        if self._masks.keys() - unmasked:  # some attention types need a mask
            self._hold(start, count)
        first = start - self._held.start
        masks = {
            kind: None if kind in unmasked else mask[..., first : first + count, :end]
            for kind, mask in self._masks.items()
        }
        return {"attention_mask": mask_argument(masks), "position_ids": positions}

    def _hold(self, start: int, count: int) -> None:
        """Make the masks of `count` steps from index `start` on, unless they are held, and those of
        steps that follow, up to MASKED_STEPS.
        """
        if start < self._held.start or start + count > self._held.stop:
            steps = min(max(count, MASKED_STEPS), self.mask.shape[1] - start)
            self._held = range(start, start + steps)
            self._masks = step_masks(self._model, self._cache, self.mask[:, :start], steps)

    def keep(self, alive: Tensor) -> None:
        """Keep only the sequences with the indices `alive` [sequences]."""
        self._masks = {kind: mask[alive] for kind, mask in self._masks.items()}
        self._positions = None if self._positions is None else self._positions[alive]
        self.mask = self.mask[alive]
