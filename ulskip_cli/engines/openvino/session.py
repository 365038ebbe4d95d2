"""The session of OpenVINO, which has a traced model and an inference request for each view."""

from collections.abc import Sequence

import openvino
import torch
from openvino.properties import hint
from torch import Tensor
from transformers import PreTrainedModel

from ulskip_cli.core.files import Table
from ulskip_cli.engines.base import BatchRequest, Views
from ulskip_cli.engines.library import LibrarySession
from ulskip_cli.engines.openvino.export import ENGINE, Masks, OpenVinoRequest, export_openvino

MASKED_STEPS = 64  # steps whose masks are computed at once


class OpenVinoSession(LibrarySession[OpenVinoRequest]):
    """The views of all stages in OpenVINO, and the full model if it encodes the prompts. Requests
    grow as necessary.
    """

    def __init__(self, views: Views, room: object, weights: str | None) -> None:
        super().__init__(views, weights, ENGINE, bf16="f16")

    def load(self, model: PreTrainedModel) -> OpenVinoRequest:
        """Load a model from its OpenVINO file."""
        return OpenVinoRequest(
            export_openvino(model, self.weights), Masks(model), self.weights == "f32"
        )

    def encode(self, request: BatchRequest) -> Tensor:
        """Start a batch; return the logits [batch, vocab_size] after its prompts."""
        input_ids, mask = request.input_ids, request.attention_mask
        self._prompt_mask, self._seen = mask, mask.shape[1]  # _seen: number of positions so far
        self.full.clear()
        masks = self.full.masks.of_prompt(mask)
        logits = self.full(input_ids, (mask.cumsum(1) - 1).clamp(min=0), masks)[:, -1]
        self._masks, self._masked = dict[str, Tensor](), range(0)  # of steps, and their positions
        self._rows: Tensor | None = None  # those that continue; None: all
        self.start()  # makes `view` that of the first stage
        tokens = input_ids.numel()
        self.kv_bytes = self.full.num_bytes(tokens), self.view.num_bytes(tokens)
        return logits

    def move(self, source: OpenVinoRequest, layers: Sequence[int]) -> None:
        """Copy the keys and values of `layers` from another request to the current view."""
        self.view.take_layers(source, layers)
        self._masks = {}  # a view can have other kinds of masks

    def remove(self, count: int) -> None:
        """Forget the last `count` positions."""
        self.view.remove(count)
        self._seen -= count

    def check(self, tokens: Tensor) -> Tensor:
        """Return the logits [batch, count, vocab_size] after each of `tokens` [batch, count]."""
        batch, count = tokens.shape
        start, end = self._seen, self._seen + count
        generated = start - self._prompt_mask.shape[1]
        has_masks = self._masked.start <= start and end <= self._masked.stop
        if not self._masks or not has_masks:
            seen = torch.cat([self._prompt_mask, self._prompt_mask.new_ones(batch, generated)], 1)
            self._masked = range(start, start + max(MASKED_STEPS, count))  # positions with masks
            self._masks = self.view.masks.of_steps(seen, len(self._masked))
        rows = slice(start - self._masked.start, end - self._masked.start)
        masks = {kind: mask[:, :, rows, :end] for kind, mask in self._masks.items()}
        positions = self._prompt_mask.sum(1, keepdim=True) + generated + torch.arange(count)
        logits = self.view(tokens, positions, masks, self._rows, count)
        self._seen, self._rows = end, None  # the request has dropped the ended sequences
        return logits

    def keep(self, alive: Tensor) -> None:
        """Continue with the sequences at the indices `alive` [sequences] only, from the next pass
        on.
        """
        self._prompt_mask, self._rows = self._prompt_mask[alive], alive.int()
        self._masks = {kind: mask[alive] for kind, mask in self._masks.items()}

    def describe(self) -> Table:
        """Return the package, version and build of the library, and the format of the weights."""
        build = [
            f"{name}={self.full.compiled.get_property(getattr(hint, name)).get_type_name()}"
            for name in ("inference_precision", "kv_cache_precision")
        ]
        version = openvino.__version__
        return {"package": "openvino", "version": version, "build": build, "weights": self.weights}
