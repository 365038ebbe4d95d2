"""Decode steps of a batch, in the kernels or by forward passes of a view, with a KV cache in
preallocated buffers.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from operator import sub
from typing import Any, Self

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from ulskip_cli.engines.sampling import most_likely
from ulskip_cli.engines.torch import kernels
from ulskip_cli.engines.torch.native_model import NativeModel
from ulskip_cli.engines.torch.static_cache import Cursor, FixedLayer, PositionsAndMasks
from ulskip_cli.inference import kv_cache


class DecodeSteps(ABC):
    """The steps of a batch; `model` runs them, and `cache` has its layers."""

    def __init__(self, model: Any, cache: DynamicCache, mask: Tensor, length: int) -> None:
        """Take over a prompt's pruned cache; `mask` is [batch, prompt_len], and `length` counts all
        new tokens, of which no step reads the last.
        """
        self.cursor = Cursor(cache.get_seq_length())
        self.capacity = mask.shape[1] + length - 1
        for i, layer in enumerate(cache.layers):  # frees the old tensors layer by layer
            cache.layers[i] = FixedLayer(layer, self.capacity, self.cursor)
        self.model, self.cache = model, cache

    @abstractmethod
    def logits(self, tokens: Tensor) -> Tensor:
        """Return the logits [batch, count, vocab_size] after each of `tokens` [batch, count]."""

    def choose(self, tokens: Tensor, banned: Tensor) -> Tensor:
        """Return the most likely token [batch, count] after each of `tokens` [batch, count];
        tokens in `banned` are not chosen.
        """
        return most_likely(self.logits(tokens), banned)

    @property
    def head_rows(self) -> float | None:
        """The mean number of rows of the head that screens left to compute exactly; None without
        screens.
        """
        return None

    def remove(self, count: int) -> None:
        """Forget the last `count` positions."""
        self.cursor.length -= count

    def drop_finished(self, alive: Tensor) -> None:
        """Keep only the sequences at the indices `alive` [sequences]."""
        self.cache.reorder_cache(alive)

    def switch(self, model: Any, kept: Sequence[int]) -> None:
        """Continue with another model, whose layers have the places `kept` in the prompt's."""
        kv_cache.prune_cache(self.cache, kept)
        self.model = model

    def beside(self, model: Any, kept: Sequence[int]) -> Self:
        """Return steps of another model that read and write the keys and values of this batch in
        the layers `kept`; both have one cursor.
        """
        steps = copy.copy(self)
        steps.cache = copy.copy(self.cache)
        steps.switch(model, kept)
        return steps


class EagerSteps(DecodeSteps):
    """Steps of any model, by its own forward passes."""

    model: PreTrainedModel

    def __init__(
        self, model: PreTrainedModel, cache: DynamicCache, mask: Tensor, length: int
    ) -> None:
        super().__init__(model, cache, mask, length)
        self.positions = PositionsAndMasks(model, cache, mask, length - 1)

    def logits(self, tokens: Tensor) -> Tensor:
        """Return the logits [batch, count, vocab_size] after each of `tokens` [batch, count]."""
        options = self.positions.options(self.cursor.length, tokens.shape[1])
        outputs = self.model(input_ids=tokens, cache=self.cache, use_cache=True, **options)
        self.cursor.length += tokens.shape[1]
        logits: Tensor = outputs.logits
        return logits

    def drop_finished(self, alive: Tensor) -> None:
        """Keep only the sequences at the indices `alive` [sequences]."""
        super().drop_finished(alive)
        self.positions.drop_finished(alive)


class NativeSteps(DecodeSteps):
    """Steps that are one call of the kernels. The logits of a token have the same bits whatever
    other tokens and sequences are in the step.
    """

    model: NativeModel

    def __init__(self, model: NativeModel, cache: DynamicCache, mask: Tensor, length: int) -> None:
        super().__init__(model, cache, mask, length)
        self.padding = (mask == 0).sum(dim=1).int()
        self.layers = model.bind(cache)
        self._screens_before = model.screens

    def logits(self, tokens: Tensor) -> Tensor:
        """Return the logits [batch, count, vocab_size] after each of `tokens` [batch, count]."""
        logits = torch.empty(*tokens.shape, self.model.vocab_size)
        self.model.run(self.layers, self.batch(tokens), tokens.contiguous(), logits=logits)
        self.cursor.length += tokens.shape[1]
        return logits

    def choose(self, tokens: Tensor, banned: Tensor) -> Tensor:
        """Return the most likely token [batch, count] after each of `tokens` [batch, count];
        tokens in `banned` are not chosen.
        """
        chosen = self.model.choose(self.layers, self.batch(tokens), tokens.contiguous(), banned)
        self.cursor.length += tokens.shape[1]
        return chosen

    @property
    def head_rows(self) -> float | None:
        """The mean number of rows of the head that screens left to compute exactly; None if all
        are computed.
        """
        choices, rows = map(sub, self.model.screens, self._screens_before)  # of this batch
        return rows / choices if choices else None

    def batch(self, tokens: Tensor) -> kernels.Batch:
        """Return the place of `tokens` [batch, count, ...] behind the filled positions."""
        return kernels.Batch(
            *tokens.shape[:2], self.cursor.length, self.capacity, self.padding.data_ptr()
        )

    def drop_finished(self, alive: Tensor) -> None:
        """Keep only the sequences at the indices `alive` [sequences]."""
        super().drop_finished(alive)
        self.padding = self.padding[alive]
        self.layers = self.model.bind(self.cache)

    def switch(self, model: NativeModel, kept: Sequence[int]) -> None:
        """Continue with another model, whose layers have the places `kept` in the prompt's."""
        super().switch(model, kept)
        self.layers, self._screens_before = model.bind(self.cache), model.screens
