"""The session of OpenVINO: traced views, each with a request of its own.

The keys and values of a view's layers move there from the full model, which encodes the prompts
with prompt_layers=all, and from the view of the stage before.
"""

from typing import Any

import openvino
import torch
from openvino.properties import hint
from torch import Tensor
from transformers import PreTrainedModel

from ulskip_cli.engines.base import BatchRequest, Views
from ulskip_cli.engines.loop import SteppingSession
from ulskip_cli.engines.openvino.export import Masks, default_weights, export
from ulskip_cli.engines.openvino.request import OpenVinoRequest

MASKED_STEPS = 64  # steps whose masks are computed at once


class OpenVinoSession(SteppingSession):
    """The views of all stages in OpenVINO, and the full model if it encodes the prompts. Requests
    grow as necessary.
    """

    def __init__(self, views: Views, weights: str | None) -> None:
        self.weights = weights or default_weights(views.prompt_model)
        self.stages = views.stages
        self.views = [self._load(stage.view) for stage in self.stages]
        encodes = views.prompt_model is self.stages[0].view
        self.full = self.views[0] if encodes else self._load(views.prompt_model)
        self._now, self._dropped = (
            0,
            False,
        )  # the current stage; True if `_rows` drops sequences in the next pass

    def _load(self, model: PreTrainedModel) -> tuple[OpenVinoRequest, Masks]:
        return OpenVinoRequest(export(model, self.weights), self.weights == "f32"), Masks(model)

    def encode(self, request: BatchRequest) -> Tensor:
        """Start a batch; return the logits [batch, vocab_size] after its prompts."""
        input_ids, mask = request.input_ids, request.attention_mask
        full, masks = self.full
        view, _ = self.views[0]
        full.clear()
        logits = full(input_ids, (mask.cumsum(1) - 1).clamp(min=0), masks.of_prompt(mask))
        if full is not view:
            view.take_layers(full, self.stages[0].kept)
        self.kv_bytes = full.num_bytes(input_ids.numel()), view.num_bytes(input_ids.numel())
        self._next, self._rows = (
            mask.sum(1, keepdim=True),
            torch.arange(len(mask), dtype=torch.int32),
        )
        self._seen, self._steps, self._step, self._now, self._dropped = (
            mask,
            dict[str, Tensor](),
            0,
            0,
            False,
        )
        return logits

    def switch(self, stage: int) -> None:
        """Continue with the view of a later stage, which takes over the keys and values of its
        layers.
        """
        before, self._now = self._now, stage
        kept = [self.stages[before].kept.index(layer) for layer in self.stages[stage].kept]
        self.views[stage][0].take_layers(self.views[before][0], kept)
        self._steps = {}  # a view can have other kinds of masks

    def step(self, tokens: Tensor) -> Tensor:
        """Return the logits [batch, vocab_size] after `tokens` [batch, 1]."""
        view, every_mask = self.views[self._now]
        if not self._steps or self._step == MASKED_STEPS:
            self._seen = torch.cat(
                [self._seen, self._seen.new_ones(len(tokens), self._step)], 1
            )  # before the masked steps
            self._steps, self._step = every_mask.of_steps(self._seen, MASKED_STEPS), 0
        end = self._seen.shape[1] + self._step + 1
        masks = {
            kind: mask[:, :, self._step : self._step + 1, :end]
            for kind, mask in self._steps.items()
        }
        logits = view(tokens, self._next, masks, self._rows)
        self._next = self._next + 1
        self._step += 1
        if self._dropped:
            self._rows, self._dropped = torch.arange(len(tokens), dtype=torch.int32), False
        return logits

    def keep(self, alive: Tensor) -> None:
        """Continue with the sequences at the indices `alive` [sequences] only."""
        self._seen, self._next, self._rows, self._dropped = (
            self._seen[alive],
            self._next[alive],
            self._rows[alive],
            True,
        )
        self._steps = {kind: mask[alive] for kind, mask in self._steps.items()}

    def describe(self) -> dict[str, Any]:
        """Return the package, version and build of the library, and the format of the weights."""
        compiled = self.full[0].compiled
        precision = compiled.get_property(hint.inference_precision)
        keys = compiled.get_property(hint.kv_cache_precision)
        return {
            "package": "openvino",
            "version": openvino.__version__,
            "build": [
                f"inference_precision={precision.get_type_name()}",
                f"kv_cache_precision={keys.get_type_name()}",
            ],
            "weights": self.weights,
        }
