"""The OpenVINO engine: views traced with the KV cache as states, decoded by OpenVINO on the CPU.

With prompt_layers=all the full model encodes the prompts, and the kept layers' keys and values move to the view's request.
"""

from typing import Any

import openvino
import torch
from openvino.properties import hint
from torch import Tensor
from transformers import PreTrainedModel

from ulskip_cli.inference.engines.openvino_export import Masks, default_weights, export
from ulskip_cli.inference.engines.openvino_request import OpenVinoRequest
from ulskip_cli.inference.shallow_view import StageView

MASKED_STEPS = 64  # steps whose masks are computed at once


class OpenVinoRuntime:
    """A view in OpenVINO, and the full model if it encodes the prompts. Requests grow with the batch and the length."""

    can_shrink = True

    def __init__(
        self, prompt_model: PreTrainedModel, stage: StageView, weights: str | None, batch_size: int, num_tokens: int
    ) -> None:
        self.weights = weights or default_weights(stage.view)
        exact = self.weights == "f32"
        self.kept = stage.kept
        self.view = OpenVinoRequest(export(stage.view, self.weights), exact)
        self.masks = Masks(stage.view)
        self.full, self.full_masks = self.view, self.masks
        if prompt_model is not stage.view:
            self.full = OpenVinoRequest(export(prompt_model, self.weights), exact)
            self.full_masks = Masks(prompt_model)
        self.kv_bytes = (0, 0)

    def fits(self, batch_size: int, num_tokens: int) -> bool:
        """Return True, because the memory grows."""
        return True

    def encode(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """Start a batch; return the logits [batch, vocab_size] after prompts [batch, prompt_len], padded on the left."""
        self.view.clear()
        self.full.clear()
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        logits = self.full(input_ids, positions, self.full_masks.of_prompt(mask))
        encoded = self.view.num_bytes(input_ids.numel())
        if self.full is not self.view:
            self.view.take_layers(self.full, self.kept)
            encoded = self.full.num_bytes(input_ids.numel())
        self.kv_bytes = (encoded, self.view.num_bytes(input_ids.numel()))
        self._seen, self._next, self._rows = mask, mask.sum(1, keepdim=True), torch.arange(len(mask))
        self._steps, self._step = dict[str, Tensor](), 0
        return logits

    def __call__(self, tokens: Tensor) -> Tensor:
        """Return the logits [batch, vocab_size] after `tokens` [batch, 1]."""
        if not self._steps or self._step == MASKED_STEPS:
            self._steps, self._step = self.masks.of_steps(self._seen, MASKED_STEPS), 0
        end = self._seen.shape[1] + 1
        masks = {kind: one[:, :, self._step : self._step + 1, :end] for kind, one in self._steps.items()}
        logits = self.view(tokens, self._next, masks, self._rows)
        self._seen = torch.cat([self._seen, torch.ones_like(self._next)], 1)
        self._next = self._next + 1
        self._step += 1
        self._rows = torch.arange(len(tokens))
        return logits

    def drop_finished(self, alive: Tensor) -> None:
        """Keep only the sequences with the indices `alive` [sequences]."""
        self._seen, self._next, self._rows = self._seen[alive], self._next[alive], self._rows[alive]
        self._steps = {kind: one[alive] for kind, one in self._steps.items()}

    def describe(self) -> dict[str, Any]:
        """Return the version and the build of the library, as a row stores them."""
        compiled = self.view.compiled
        precision = compiled.get_property(hint.inference_precision)
        keys = compiled.get_property(hint.kv_cache_precision)
        return {
            "package": "openvino",
            "version": openvino.__version__,
            "build": [f"inference_precision={precision.get_type_name()}", f"kv_cache_precision={keys.get_type_name()}"],
            "weights": self.weights,
        }
