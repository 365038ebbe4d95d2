"""Decode steps of a batch, in the kernels or by forward passes of a view, with a KV cache in
preallocated buffers; and steps with early exit, which run layers until the prediction of the next
token is confident enough.

A token that exits early has no keys and values in the layers above. When a later token reaches such
a layer, the layer also processes the stored hidden states of the earlier tokens. All keys therefore
equal those of the full model, and one forward pass over given tokens has the logits of all steps
(`exit_logits` in `scoring.py`).
"""

import copy
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from ulskip_cli.core.schedule import ExitRule
from ulskip_cli.engines.base import ExitStats
from ulskip_cli.engines.loop import synchronized_time
from ulskip_cli.engines.sampling import confidence_of, most_likely
from ulskip_cli.engines.torch import kernels
from ulskip_cli.engines.torch.native_model import NativeModel, one_layer
from ulskip_cli.engines.torch.static_cache import Cursor, FixedLayer, PositionsAndMasks
from ulskip_cli.inference import kv_cache
from ulskip_cli.inference.layerwise import LayerInputs, LayerwiseModel


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

    def details(self) -> dict[str, Any]:
        """Return further fields of the batch's `BatchOutput`."""
        return {}

    def remove(self, count: int) -> None:
        """Forget the last `count` positions."""
        self.cursor.length -= count

    def keep(self, alive: Tensor) -> None:
        """Keep only the sequences at the indices `alive` [sequences]."""
        self.cache.reorder_cache(alive)

    def switch(self, model: Any, places: Sequence[int]) -> None:
        """Continue with another model, whose layers have these places in the prompt's cache."""
        kv_cache.prune_cache(self.cache, places)
        self.model = model

    def beside(self, model: Any, places: Sequence[int]) -> Self:
        """Return steps of another model, whose layers share the keys and values at these places of
        the cache, and the cursor.
        """
        steps = copy.copy(self)
        steps.cache = copy.copy(self.cache)
        steps.switch(model, places)
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

    def keep(self, alive: Tensor) -> None:
        """Keep only the sequences at the indices `alive` [sequences]."""
        super().keep(alive)
        self.positions.keep(alive)


class LayerwiseSteps(EagerSteps):
    """Steps whose parts run one by one, in the model's own modules."""

    inputs: LayerInputs  # of the tokens entered last

    def __init__(
        self,
        layerwise: LayerwiseModel,
        model: PreTrainedModel,
        cache: DynamicCache,
        mask: Tensor,
        length: int,
    ) -> None:
        """Take over a prompt's cache; `layerwise` is the `model`, split into its layers."""
        super().__init__(model, cache, mask, length)
        self.layerwise = layerwise

    def enter(self, tokens: Tensor) -> Tensor:
        """Return the states [batch, count, hidden_size] of `tokens` [batch, count], which follow
        the filled positions, in front of the first layer.
        """
        options = self.positions.options(self.cursor.length, tokens.shape[1])
        self.inputs = self.layerwise.layer_inputs(tokens, self.cache, **options)
        return self.inputs.hidden

    def layer(self, index: int, states: Tensor) -> Tensor:
        """Run a layer on states [batch, count, hidden_size] of the tokens entered last."""
        return self.layerwise.layer(index, states, self.inputs)

    def head(self, states: Tensor) -> Tensor:
        """Return the logits [batch, count, vocab_size] of states."""
        return self.layerwise.logits(states)


class NativeSteps(DecodeSteps):
    """Steps that are one call of the kernels, or whose parts run one by one. The logits of a token
    have the same bits whatever other tokens and sequences are in the step.
    """

    model: NativeModel

    def __init__(self, model: NativeModel, cache: DynamicCache, mask: Tensor, length: int) -> None:
        super().__init__(model, cache, mask, length)
        self.padding = (mask == 0).sum(dim=1).int()
        self.layers = model.bind(cache)
        self._counts_before = model.exact_row_counts

    def logits(self, tokens: Tensor) -> Tensor:
        """Return the logits [batch, count, vocab_size] after each of `tokens` [batch, count]."""
        logits = torch.empty(*tokens.shape, self.model.vocab_size)
        self.model.run(self.layers, self.batch(tokens), tokens.contiguous(), logits=logits)
        self.cursor.length += tokens.shape[1]
        return logits

    def choose(self, tokens: Tensor, banned: Tensor) -> Tensor:
        """Return the most likely tokens, by bounds if the model has a head in 8 bits."""
        chosen = self.model.choose(self.layers, self.batch(tokens), tokens.contiguous(), banned)
        self.cursor.length += tokens.shape[1]
        return chosen

    def details(self) -> dict[str, Any]:
        """Return the mean number of rows of the head that were computed exactly for a token in
        this batch; None if all are computed.
        """
        counts, before = self.model.exact_row_counts, self._counts_before
        tokens = counts.tokens - before.tokens
        rows = counts.exact_rows - before.exact_rows
        return {"head_rows": rows / tokens if tokens else None}

    def enter(self, tokens: Tensor) -> Tensor:
        """Return the states [batch, count, hidden_size] of `tokens` [batch, count], which follow
        the filled positions, in front of the first layer.
        """
        states = self.model.empty_states(*tokens.shape)
        self.model.run(None, self.batch(tokens), tokens.contiguous(), states)
        return states

    def layer(self, index: int, states: Tensor) -> Tensor:
        """Run a layer on states [batch, count, hidden_size], which it overwrites."""
        self.model.run(one_layer(self.layers, index), self.batch(states), states=states)
        return states

    def head(self, states: Tensor) -> Tensor:
        """Return the logits [batch, count, vocab_size] of states [batch, count, hidden_size]."""
        states = states.contiguous()
        logits = torch.empty(*states.shape[:2], self.model.vocab_size)
        self.model.run(None, self.batch(states), states=states, logits=logits)
        return logits

    def batch(self, tokens: Tensor) -> kernels.Batch:
        """Return the place of `tokens` [batch, count, ...] behind the filled positions."""
        return kernels.Batch(
            *tokens.shape[:2], self.cursor.length, self.capacity, self.padding.data_ptr()
        )

    def keep(self, alive: Tensor) -> None:
        """Keep only the sequences at the indices `alive` [sequences]."""
        super().keep(alive)
        self.padding = self.padding[alive]
        self.layers = self.model.bind(self.cache)

    def switch(self, model: NativeModel, places: Sequence[int]) -> None:
        """Continue with another model, whose layers have these places in the prompt's cache."""
        super().switch(model, places)
        self.layers, self._counts_before = model.bind(self.cache), model.exact_row_counts


class ExitSteps(DecodeSteps):
    """Decode steps; the exit rule chooses the depth at which a step ends. They have no `model` and
    `cache` of their own, because stages and drafts are refused with early exit.
    """

    def __init__(
        self,
        full_steps: LayerwiseSteps | NativeSteps,
        rule: ExitRule,
        ids: Tensor,
        ends: Sequence[int],
    ) -> None:
        """Take over the steps of the full model after prompts `ids` [batch, prompt_len], whose keys
        and values are in the cache of every layer; they run the first part of the model, its layers
        and its head one by one. The tokens `ends` end a sequence.
        """
        self.full_steps, self.cursor, self.rule = full_steps, full_steps.cursor, rule
        self.ids = ids  # [batch, len], of all tokens so far
        self.prompt_len = ids.shape[1]
        self.ends = ids.new_tensor(list(ends))
        self.done = torch.zeros_like(self.ids[:, 0], dtype=torch.bool)  # [batch], after EOS
        self._checks = frozenset(self.rule.checks)
        # By depth: the hidden states [batch, tokens, hidden_size] of the tokens that exited there.
        # These tokens directly precede the next token that reaches this depth, because they have no
        # keys in the layers above.
        self._pending: list[list[Tensor]] = [[] for _ in range(self.rule.num_layers)]
        self._check_seconds = 0.0
        self._counts = Counter[int]()

    def details(self) -> dict[str, Any]:
        """Return the exit depths so far."""
        return {"exits": ExitStats(+self._counts, self._check_seconds)}

    def logits(self, tokens: Tensor) -> Tensor:
        """Run layers until a check is confident enough; return the logits [batch, 1, vocab_size]
        after `tokens` [batch, 1]. At a depth at which earlier tokens exited, these join the new
        ones, so that deeper layers have keys of all tokens.
        """
        self.ids = torch.cat([self.ids, tokens], dim=1)
        self.done = self.done | torch.isin(tokens[:, 0], self.ends)
        length = self.ids.shape[1]
        threshold = self.rule.threshold_at(length - 1 - self.prompt_len)
        states = self._enter_from(length - 1)
        for depth in range(1, self.rule.num_layers + 1):  # layers that have run after the pass
            if self._pending[depth - 1]:
                states = torch.cat([*self._pending[depth - 1], states], dim=1)
                self._pending[depth - 1] = []
                self._enter_from(length - states.shape[1])  # places the joined tokens, too
            states = self.full_steps.layer(depth - 1, states)
            logits = None
            if depth in self._checks:
                logits = self._confident_logits(states[:, -1:], threshold)
            if logits is not None:
                self._pending[depth].append(states)
                break
        else:
            logits = self.full_steps.head(states[:, -1:])
        self.cursor.length = length
        self._counts[depth] += int((~self.done).sum())
        return logits

    def keep(self, alive: Tensor) -> None:
        """Keep only the sequences at the indices `alive`."""
        self.full_steps.keep(alive)
        self.ids, self.done = self.ids[alive], self.done[alive]
        self._pending = [[states[alive] for states in behind] for behind in self._pending]

    def _enter_from(self, start: int) -> Tensor:
        """Set the cursor to `start`, so that layers write keys from there on; return the inputs of
        the first layer for the tokens from `start` on.
        """
        self.cursor.length = start
        return self.full_steps.enter(self.ids[:, start:])

    def _confident_logits(self, states: Tensor, threshold: float) -> Tensor | None:
        """Return the logits [batch, 1, vocab_size] after states [batch, 1, hidden_size] if the
        lowest confidence of unfinished sequences reaches the threshold, else None. The time counts
        as that of checks.
        """
        began = synchronized_time(states.device)
        logits = self.full_steps.head(states)
        confidence = confidence_of(logits)[:, 0]
        exits = float(confidence.masked_fill(self.done, torch.inf).min()) >= threshold
        self._check_seconds += synchronized_time(states.device) - began
        return logits if exits else None
