"""Position ids and attention masks of all decode steps, computed before the first step."""

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from ulskip_cli.inference import static_cache
from ulskip_cli.inference.static_cache import Masks


def takes_positions(view: PreTrainedModel) -> bool:
    """Return True if a model accepts position ids; models with ALiBi derive positions from the mask."""
    return "position_ids" in inspect.signature(view.forward).parameters


class PositionsAndMasks:
    """The position ids and masks of a batch for passes over one token or, with `several`, over several tokens."""

    def __init__(self, model: PreTrainedModel, cache: DynamicCache, mask: Tensor, steps: int, several: bool = True) -> None:
        """Prepare positions and masks of `steps` tokens after the prompt; `mask` [batch, prompt_len] is the prompt's mask."""
        self.prompt_len = mask.shape[1]
        self._single: Masks = None
        self._several: Masks = None
        self._positions: Tensor | None = None
        if takes_positions(model):
            self._positions = mask.sum(1, keepdim=True) + torch.arange(steps, device=mask.device)
            if steps:
                self._single = static_cache.step_masks(model, cache, mask, steps)
            if steps and several:
                self._several = static_cache.full_masks(model, cache, mask, steps, self.prompt_len + steps)
        self._mask = torch.cat([mask, mask.new_ones(len(mask), steps)], dim=1)

    def options(self, start: int, count: int) -> dict[str, Any]:
        """Return the arguments of a forward pass over `count` tokens from index `start` of the padded sequence on."""
        step, end = start - self.prompt_len, start + count
        if self._positions is None:
            return {"attention_mask": self._mask[:, :end]}
        masks = self._single if count == 1 else self._several
        positions = self._positions[:, step : step + count]
        return {"attention_mask": static_cache.mask_at(masks, step, end, count), "position_ids": positions}

    def drop_finished(self, alive: Tensor) -> None:
        """Keep only the sequences with the indices `alive` [sequences]."""
        self._single = static_cache.masks_of(self._single, alive)
        self._several = static_cache.masks_of(self._several, alive)
        self._positions = None if self._positions is None else self._positions[alive]
        self._mask = self._mask[alive]
