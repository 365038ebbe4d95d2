"""Masks and positions of passes over fixed buffers, made ahead: a pass may begin anywhere and take several tokens."""

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from ulskip_cli.inference import static_cache
from ulskip_cli.inference.decode_steps import takes_positions
from ulskip_cli.inference.static_cache import Masks


class PositionsAndMasks:
    """What a model's forward takes to know where in their sequences tokens stand."""

    def __init__(self, model: PreTrainedModel, cache: DynamicCache, mask: Tensor, steps: int) -> None:
        """Make them for all steps to come.

        Args:
            model: whose passes they are.
            cache: of fixed buffers, filled with the prompt.
            mask: [batch, prompt_len], 1 for tokens, 0 for padding.
            steps: tokens that will be read after the prompt.
        """
        self.prompt_len = mask.shape[1]
        self._single: Masks = None
        self._several: Masks = None
        self._positions: Tensor | None = None
        if takes_positions(model):
            self._positions = mask.sum(1, keepdim=True) + torch.arange(steps, device=mask.device)
            if steps:
                self._single = static_cache.step_masks(model, cache, mask, steps)
                self._several = static_cache.full_masks(model, cache, mask, steps, self.prompt_len + steps)
        self._mask = torch.cat([mask, mask.new_ones(len(mask), steps)], dim=1)

    def options(self, start: int, count: int) -> dict[str, Any]:
        """Of a pass over `count` tokens, the first of which stands at `start` in the padded sequence."""
        step, end = start - self.prompt_len, start + count
        if self._positions is None:
            return {"attention_mask": self._mask[:, :end]}
        masks = self._single if count == 1 else self._several
        return {
            "attention_mask": static_cache.mask_at(masks, step, end, count),
            "position_ids": self._positions[:, step : step + count],
        }

    def keep(self, alive: Tensor) -> None:
        """Go on with some of the sequences."""
        self._single = static_cache.masks_of(self._single, alive)
        self._several = static_cache.masks_of(self._several, alive)
        self._positions = None if self._positions is None else self._positions[alive]
        self._mask = self._mask[alive]
