"""Decode steps: eager or compiled forward passes of a view for one new token of every sequence."""

import contextlib
import os
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from ulskip_cli.core.files import Table, cache_dir
from ulskip_cli.engines.torch import static_cache
from ulskip_cli.engines.torch.compiled_layers import own_copy, with_compiled_layers
from ulskip_cli.engines.torch.static_cache import (
    Cursor,
    FixedLayer,
    PositionsAndMasks,
    StaticLayer,
    UnplacedLayer,
)
from ulskip_cli.inference import shallow_view

_COMPILED_CODE = "TORCHINDUCTOR_CACHE_DIR"
# elements for which another CPU thread saves time; torch's 512 is slower for the few rows of a step
MIN_CHUNK = 8192
CHECKED_STEPS = 2
WARM_UP_STEPS = 3  # CUDA graphs allocate in the first, record in the second and replay in the third


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
        self.view, self.cache, self.cursor = view, cache, Cursor(cache.get_seq_length())
        for i, layer in enumerate(cache.layers):  # frees the old tensors layer by layer
            cache.layers[i] = FixedLayer(layer, mask.shape[1] + length - 1, self.cursor)
        self.positions = PositionsAndMasks(view, self.cache, mask, length - 1, several)

    def __call__(self, tokens: Tensor) -> Tensor:
        """Return the logits [batch, vocab_size] after `tokens` [batch, 1]."""
        return self.forward(tokens, self.view, self.cache)[:, -1]

    def forward(self, tokens: Tensor, view: PreTrainedModel, cache: DynamicCache) -> Tensor:
        """Return the logits [batch, count, vocab_size] after each of `tokens` [batch, count];
        `cache` has the view's layers.
        """
        options = self.positions.options(self.cursor.length, tokens.shape[1])
        logits: Tensor = view(input_ids=tokens, cache=cache, use_cache=True, **options).logits
        self.cursor.length += tokens.shape[1]
        return logits

    def drop_finished(self, alive: Tensor) -> None:
        """Keep only the sequences `alive`."""
        self.cache.reorder_cache(alive)
        self.positions.drop_finished(alive)


class CompiledSteps:
    """Steps compiled by torch.compile for one batch size and capacity, used for many batches."""

    def __init__(
        self, view: PreTrainedModel, cache: DynamicCache, capacity: int, by_layer: bool = False
    ) -> None:
        """Allocate buffers of `capacity` positions with the shapes of `cache`, compile, and run
        warm-up steps.

        `by_layer` compiles each kind of decoder layer once, in seconds; else the whole step is
        compiled.
        """
        batch, device = cache.layers[0].keys.shape[0], cache.layers[0].keys.device
        self.source = self.view = view
        self.capacity = capacity
        if by_layer:
            self.view = with_compiled_layers(view, (batch, capacity), _inductor_options(device))
        self.cursor = Cursor(
            cache.get_seq_length(), torch.zeros(1, dtype=torch.long, device=device)
        )
        self._reads_all = (
            device.type == "cuda"
        )  # CUDA graphs read whole buffers; compiled CPU code reads the filled part
        self._seen = torch.empty(capacity, device=device)
        self.cache = DynamicCache()
        self.cache.kept_layers = cache.kept_layers
        self.with_positions = shallow_view.takes_positions(view)
        kind = StaticLayer if self.with_positions else UnplacedLayer
        self.cache.layers = [kind(layer, capacity, self.cursor) for layer in cache.layers]
        self._forward = _forward if by_layer else _compiled_forward(device)
        began = time.perf_counter()
        # All inputs of a step keep their addresses and strides.
        self._padding = torch.zeros(batch, capacity, dtype=torch.long, device=device)
        self._tokens, self._positions = (
            torch.zeros(batch, 1, dtype=torch.long, device=device) for _ in range(2)
        )
        self.begin(
            cache,
            torch.ones(batch, self.cursor.length, dtype=torch.long, device=device),
            1 + WARM_UP_STEPS,
        )
        self._masks = {
            kind: torch.empty(batch, 1, 1, capacity, dtype=view.dtype, device=device)
            for kind in self._full
        }
        self._warms_up = True
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.compile warns about its internals
            for _ in range(WARM_UP_STEPS):
                self(torch.zeros(batch, 1, dtype=torch.long, device=device))
        self._warms_up = False
        if self._reads_all:
            torch.cuda.synchronize(device)
        self.compile_seconds = time.perf_counter() - began

    def continue_from(self, before: "CompiledSteps", kept: Sequence[int]) -> None:
        """Continue from the previous stage with the layers `kept` of the prompt's model."""
        held = shallow_view.fork_cache(before.cache, kept)
        done = before.cursor.length - before.prompt_len
        mask = torch.cat([before.mask, before.mask.new_ones(len(before.mask), done)], dim=1)
        self.begin(held, mask, before.length - done)

    def begin(self, cache: DynamicCache, mask: Tensor, length: int) -> None:
        """Start another batch of the same size; `EagerSteps.__init__` describes the arguments."""
        self.mask, self.length = mask, length
        self.prompt_len = self.cursor.length = mask.shape[1]
        for layer, held in zip(self.cache.layers, cache.layers, strict=True):
            layer.begin(held)
        self._full: dict[str, Tensor] = {}
        if not self.with_positions:
            self._padding.zero_()[:, : self.prompt_len] = mask
            return
        self.positions = mask.sum(1, keepdim=True) + torch.arange(length - 1, device=mask.device)
        self._full = static_cache.step_masks(self.view, self.cache, mask, length - 1, self.capacity)

    def __call__(self, tokens: Tensor) -> Tensor:
        """Return the logits [batch, vocab_size] after `tokens` [batch, 1]."""
        step, end = (
            self.cursor.length - self.prompt_len,
            (self.capacity if self._reads_all else self.cursor.length + 1),
        )
        self.cursor.index.fill_(self.cursor.length)
        self.cursor.seen = self._seen[:end]
        self._tokens.copy_(tokens)
        if self.with_positions:
            self._positions.copy_(self.positions[:, step : step + 1])
            for kind, mask in self._full.items():
                self._masks[kind].copy_(mask[:, :, step : step + 1])
            by_kind = {kind: mask[..., :end] for kind, mask in self._masks.items()}
        else:
            self._padding[:, self.cursor.length] = 1
            by_kind = {"": self._padding[:, :end]}
        if self._warms_up and not self._reads_all:
            for growing in (self.cursor.seen, *by_kind.values()):
                torch._dynamo.mark_dynamic(growing, growing.ndim - 1)
        masks = by_kind.get("", by_kind)
        positions = self._positions if self.with_positions else None
        logits: Tensor = self._forward(self.view, self.cache, self._tokens, positions, masks)
        self.cursor.length += 1
        return logits


class WrongCode(RuntimeError):
    """Compiled steps give other logits than eager steps, because the model reads a value that
    compilation made constant.
    """


def check_compiled(steps: CompiledSteps, cache: DynamicCache, mask: Tensor) -> None:
    """Compare steps with eager ones after the same prompt, whose `cache` is used up; raise
    WrongCode if they differ.

    `mask` is the mask [batch, prompt_len] of the prompt. Rounding errors of the dtype are allowed.
    """
    tokens = torch.zeros(len(mask), 1, dtype=torch.long, device=mask.device)
    steps.begin(cache, mask, 1 + CHECKED_STEPS)
    eager = EagerSteps(steps.source, cache, mask, 1 + CHECKED_STEPS)
    for _ in range(CHECKED_STEPS):
        got, want = steps(tokens).float(), eager(tokens).float()
        off = float((got - want).norm() / want.norm())
        if not off < (1e-3 if eager.view.dtype.itemsize > 2 else 0.1):  # else it is rounding
            raise WrongCode(f"compiled steps give logits that are off by {off:.1%}")


def _keep_compiled_code() -> None:
    """Let torch.compile keep its code in our cache instead of /tmp, so that later processes compile
    in less time.
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    folder = cache_dir() / "compiled"
    if (
        os.environ.get(_COMPILED_CODE, default_cache_dir()) == default_cache_dir()
    ):  # torch itself sets the variable
        with contextlib.suppress(OSError):  # without a writable cache, /tmp remains
            folder.mkdir(parents=True, exist_ok=True)
            os.environ[_COMPILED_CODE] = str(folder)


def _inductor_options(device: torch.device) -> Table:
    _keep_compiled_code()
    return {
        "triton.cudagraphs": device.type == "cuda",
        "cpp.min_chunk_size": MIN_CHUNK,
        "size_asserts": False,
    }


def _compiled_forward(device: torch.device) -> Callable[..., Any]:
    options = {
        **_inductor_options(device),
        # safe because no input changes its address or strides
        "guard_filter_fn": torch.compiler.skip_all_guards_unsafe,
    }
    return torch.compile(own_copy(_forward), fullgraph=True, dynamic=False, options=options)


def _forward(
    view: PreTrainedModel,
    cache: DynamicCache,
    tokens: Tensor,
    positions: Tensor | None,
    masks: Tensor | dict[str, Tensor],
) -> Tensor:
    placed = {} if positions is None else {"position_ids": positions}
    logits: Tensor = view(
        input_ids=tokens, attention_mask=masks, cache=cache, use_cache=True, **placed
    ).logits
    return logits[:, -1]
