"""Sessions on torch: the prompt's forward pass, and decode steps with a preallocated KV cache,
eager or compiled.
"""

import functools

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from ulskip_cli.core.errors import RunError, reason
from ulskip_cli.core.files import Table
from ulskip_cli.engines.base import BatchRequest, Views
from ulskip_cli.engines.loop import SteppingSession
from ulskip_cli.engines.torch.decode_steps import (
    CHECKED_STEPS,
    CompiledSteps,
    EagerSteps,
    check_compiled,
)
from ulskip_cli.engines.torch.packed_linear import packed
from ulskip_cli.inference import kv_cache, shallow_view
from ulskip_cli.inference.batching import is_out_of_memory
from ulskip_cli.inference.teacher_forcing import encode_prompt

CAPACITY_STEP = 128  # positions; capacities are rounded up, because each one is compiled separately


def unsupported_by_loop(model: PreTrainedModel) -> str | None:
    """Return the property of a model that our loop does not support, or None."""
    implementation = shallow_view.text_config(model)._attn_implementation
    if implementation not in ("sdpa", "eager"):
        return f"the attention implementation {implementation}"
    kinds = set(map(type, kv_cache.new_cache(model).layers))
    if not kinds <= {DynamicLayer, DynamicSlidingWindowLayer}:
        return "a cache with states other than keys and values"
    return None


class TorchSession(SteppingSession):
    """Greedy decoding and sampling with the views of a plan: a torch model encodes the prompts of a
    batch, and the decode steps extend the KV cache of its prompts.
    """

    steps: EagerSteps  # of the batch

    def __init__(self, views: Views, *settings: object) -> None:
        """Open a session; it needs no room and no format of weights."""
        self.views = views
        # The steps of all stages by batch size and capacity; empty: they cannot be compiled.
        self._compiled: dict[tuple[int, int], list[CompiledSteps]] = {}
        self._by_stage: list[CompiledSteps] = []  # of the batch; empty: not compiled

    @functools.cached_property
    def decode_models(self) -> list[PreTrainedModel]:
        """The views of the stages, with the weights of the linear backend."""
        return [packed(stage.view, self.views.linear_backend) for stage in self.views.stages]

    @property
    def can_shrink(self) -> bool:
        """True if the steps are eager."""
        return not self._by_stage

    def prepare(self, request: BatchRequest) -> float:
        """Pack the weights; compile the steps for this shape if compilation is on; return the
        seconds of compilation.

        Raises RunError if they cannot be compiled; with decoding.compile=auto they stay uncompiled.
        """
        decode_models, key = self.decode_models, _shape(request)
        if not _compiles(request) or key in self._compiled or request.length < 2:
            return 0.0
        mask, made = request.attention_mask, list[CompiledSteps]()
        cache = encode_prompt(self.views.prompt_model, request.input_ids, mask).cache
        # fails without a C++ compiler, and for models that torch.compile or our buffers do not
        # support
        try:
            for stage, model in zip(self.views.stages, decode_models, strict=True):
                kv_cache.prune_cache(cache, stage.kept)
                made.append(CompiledSteps(model, cache, key[1]))
                check_compiled(made[-1], kv_cache.fork_cache(cache, stage.kept), mask)
        except (RuntimeError, IndexError, torch._dynamo.exc.FailOnRecompileLimitHit) as error:
            if is_out_of_memory(error):
                self._compiled.clear()  # which frees their buffers
                self._by_stage = []
                raise
            if request.decoding.compile == "on":
                raise RunError(
                    f"torch.compile failed on the decode step ({reason(error)}); use"
                    " decoding.compile=off"
                ) from None
            made = []
        self._compiled[key] = made
        return sum(steps.compile_seconds for steps in made)

    def encode(self, request: BatchRequest) -> Tensor:
        """Start a batch; return the logits [batch, vocab_size] after its prompts."""
        prompt = encode_prompt(self.views.prompt_model, request.input_ids, request.attention_mask)
        cache, kept = prompt.cache, self.views.stages[0].kept
        self.kv_bytes = kv_cache.kv_bytes(cache), kv_cache.kv_bytes(cache, kept)
        kv_cache.prune_cache(cache, kept)
        self.steps = self.make_steps(request, cache)
        return prompt.first_logits[:, -1]

    def make_steps(self, request: BatchRequest, cache: DynamicCache) -> EagerSteps:
        """Return the decode steps after a prompt, which take over its pruned cache: those of the
        first stage, compiled ones if `prepare` made some.
        """
        self._by_stage = self._compiled.get(_shape(request), []) if _compiles(request) else []
        mask, several = request.attention_mask, bool(request.decoding.draft_tokens)
        if not self._by_stage:
            return EagerSteps(self.decode_models[0], cache, mask, request.length, several)
        self._by_stage[0].begin(cache, mask, request.length)
        return self._by_stage[0]

    def step(self, tokens: Tensor) -> Tensor:
        """Return the logits [batch, vocab_size] after `tokens` [batch, 1]."""
        return self.steps(tokens)

    def check(self, tokens: Tensor) -> Tensor:
        """Return the logits [batch, count, vocab_size] after each of `tokens` [batch, count]."""
        return self.steps.forward(tokens, self.steps.view, self.steps.cache)

    def remove(self, count: int) -> None:
        """Forget the last `count` positions."""
        self.steps.cursor.length -= count

    def keep(self, alive: Tensor) -> None:
        """Continue with the sequences at the indices `alive` [sequences] only."""
        self.steps.drop_finished(alive)

    def switch(self, stage: int) -> None:
        """Continue with the view of a later stage, which takes over the keys and values of its
        layers.
        """
        kept = self.views.stages[stage].kept
        if self._by_stage:
            self._by_stage[stage].continue_from(self.steps, kept)
            self.steps = self._by_stage[stage]
        else:
            kv_cache.prune_cache(self.steps.cache, kept)
            self.steps.view = self.decode_models[stage]

    def details(self) -> Table:
        """Return the linear backend of the steps, and True as `compiled` if they are."""
        return {"linear_backend": self.views.linear_backend, "compiled": bool(self._by_stage)}

    def finish(self) -> None:
        """Free the KV cache of the batch."""
        vars(self).pop("steps", None)


def _compiles(request: BatchRequest) -> bool:
    decoding, is_on_gpu = request.decoding, request.input_ids.device.type == "cuda"
    is_chosen = decoding.compile == "auto" and is_on_gpu and not decoding.draft_tokens
    return decoding.compile == "on" or is_chosen


def _shape(request: BatchRequest) -> tuple[int, int]:
    batch, prompt_len = request.input_ids.shape
    needed = prompt_len + max(request.length - 1, CHECKED_STEPS)
    return batch, -(-needed // CAPACITY_STEP) * CAPACITY_STEP
