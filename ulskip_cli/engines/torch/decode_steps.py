"""Decode steps: eager or compiled forward passes of a view for one new token of every sequence."""

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from ulskip_cli.core.files import Table
from ulskip_cli.engines.loop import now
from ulskip_cli.engines.torch.compiled_layers import with_compiled_layers
from ulskip_cli.engines.torch.packed_linear import exact_tokens
from ulskip_cli.engines.torch.static_cache import (
    Cursor,
    FixedLayer,
    PositionsAndMasks,
    StaticLayer,
    UnplacedLayer,
)
from ulskip_cli.inference import kv_cache, shallow_view

CHECKED_STEPS = 4
WARM_UP_STEPS = 2  # layers are compiled in the second, which shows the sizes that grow


class EagerSteps:
    """Eager decode steps with a KV cache in preallocated buffers; each step reads only the filled
    part of the buffers.
    """

    def __init__(
        self,
        view: PreTrainedModel,
        cache: DynamicCache,
        mask: Tensor,
        length: int,
        several: bool = False,
    ) -> None:
        """Take over a prompt's pruned cache; `mask` is [batch, prompt_len], and `length` counts all
        new tokens.

        `several` allows passes over more than one token.
        """
        steps = length - 1  # no step reads the last new token
        self.view, self.cache, self.cursor = view, cache, Cursor(cache.get_seq_length())
        for i, layer in enumerate(cache.layers):  # frees the old tensors layer by layer
            cache.layers[i] = FixedLayer(layer, mask.shape[1] + steps, self.cursor)
        self.positions = PositionsAndMasks(view, self.cache, mask, steps)
        # The most tokens of one pass that stays exact; None: passes are never divided.
        self.max_pass_tokens = exact_tokens(view) if several else 1

    def __call__(self, tokens: Tensor) -> Tensor:
        """Return the logits [batch, vocab_size] after `tokens` [batch, 1]."""
        return self.forward(tokens, self.view, self.cache)[:, -1]

    def forward(self, tokens: Tensor, view: PreTrainedModel, cache: DynamicCache) -> Tensor:
        """Return the logits [batch, count, vocab_size] after each of `tokens` [batch, count];
        `cache` has the view's layers. Passes are divided so that logits are those of single steps.
        """
        most = self.max_pass_tokens or tokens.shape[1]
        if tokens.shape[1] > most:
            parts = torch.split(tokens, most, dim=1)
            return torch.cat([self.forward(part, view, cache) for part in parts], dim=1)
        options = self.inputs(tokens.shape[1])
        logits: Tensor = view(input_ids=tokens, cache=cache, use_cache=True, **options).logits
        self.cursor.length += tokens.shape[1]
        return logits

    def inputs(self, count: int) -> Table:
        """Return the position ids and masks of a pass over the next `count` tokens."""
        return self.positions.options(self.cursor.length, count)

    def drop_finished(self, alive: Tensor) -> None:
        """Keep only the sequences `alive`."""
        self.cache.reorder_cache(alive)
        self.positions.drop_finished(alive)


class CompiledSteps(EagerSteps):
    """Steps with layers that torch.compile compiled for one batch size and capacity, used for many
    batches.
    """

    max_pass_tokens = 1

    def __init__(self, view: PreTrainedModel, cache: DynamicCache, capacity: int) -> None:
        """Allocate buffers of `capacity` positions with the shapes of `cache`, compile each kind of
        layer once, and run warm-up steps.
        """
        batch, device = cache.layers[0].keys.shape[0], cache.layers[0].keys.device
        self.source, self.capacity = view, capacity
        self.view = with_compiled_layers(view, (batch, capacity))
        length, index = cache.get_seq_length(), torch.zeros(1, dtype=torch.long, device=device)
        self.cursor = Cursor(length, index)
        self._seen = torch.empty(capacity, device=device)
        self._buffers = dict[str, Tensor]()  # inputs of compiled layers keep their strides
        self.cache = DynamicCache()
        self.cache.kept_layers = cache.kept_layers
        kind = StaticLayer if shallow_view.takes_positions(view) else UnplacedLayer
        self.cache.layers = [kind(layer, capacity, self.cursor) for layer in cache.layers]
        began = now(device)
        mask = torch.ones(batch, length, dtype=torch.long, device=device)
        self.begin(cache, mask, 1 + WARM_UP_STEPS)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.compile warns about its internals
            for _ in range(WARM_UP_STEPS):
                self(torch.zeros(batch, 1, dtype=torch.long, device=device))
        self.compile_seconds = now(device) - began

    def continue_from(self, before: EagerSteps, kept: Sequence[int]) -> None:
        """Continue from the previous stage with the layers `kept` of the prompt's model."""
        mask, end = before.positions.mask, before.cursor.length
        held = kv_cache.fork_cache(before.cache, kept)
        self.begin(held, mask[:, :end], mask.shape[1] - end + 1)

    def begin(self, cache: DynamicCache, mask: Tensor, length: int) -> None:
        """Start another batch of the same size; `EagerSteps.__init__` describes the arguments."""
        self.cursor.length = mask.shape[1]
        for layer, held in zip(self.cache.layers, cache.layers, strict=True):
            layer.begin(held)
        self.positions = PositionsAndMasks(self.view, self.cache, mask, length - 1)
        self.positions.unmasked = set()  # the compiled code reads a mask in every step

    def inputs(self, count: int) -> Table:
        """Return the arguments of a step in buffers that all steps share."""
        self.cursor.index.fill_(self.cursor.length)
        self.cursor.seen = self._seen[: self.cursor.length + 1]
        return {name: self._in_buffer(name, value) for name, value in super().inputs(count).items()}

    def _in_buffer(self, name: str, value: Tensor | dict[str, Tensor]) -> object:
        if isinstance(value, dict):
            return {kind: self._in_buffer(kind, mask) for kind, mask in value.items()}
        if name not in self._buffers:
            self._buffers[name] = value.new_empty(*value.shape[:-1], self.capacity)
        return self._buffers[name][..., : value.shape[-1]].copy_(value)


def check_compiled(steps: CompiledSteps, cache: DynamicCache, mask: Tensor) -> None:
    """Compare steps with eager ones after the same prompt, whose `cache` is used up; raise
    RuntimeError if they differ, because the model reads a value that compilation made constant.

    `mask` is the mask [batch, prompt_len] of the prompt. Rounding errors of the dtype are allowed;
    in bfloat16 some sequences have large ones, so the median of all logits counts.
    """
    tokens = torch.zeros(len(mask), 1, dtype=torch.long, device=mask.device)
    steps.begin(cache, mask, 1 + CHECKED_STEPS)
    eager = EagerSteps(steps.source, cache, mask, 1 + CHECKED_STEPS)
    errors = list[Tensor]()
    for _ in range(CHECKED_STEPS):
        got, want = steps(tokens).float(), eager(tokens).float()
        errors.append((got - want).norm(dim=-1) / want.norm(dim=-1))
    off = float(torch.cat(errors).median())
    if not off < (1e-3 if eager.view.dtype.itemsize > 2 else 0.1):  # else it is rounding
        raise RuntimeError(f"compiled steps give logits that are off by {off:.1%}")
