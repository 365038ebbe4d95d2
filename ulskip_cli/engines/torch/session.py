"""The session of engines on torch: preallocated KV caches, decode steps, and the choice of what
runs them.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import psutil
import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from ulskip_cli.core.files import Table
from ulskip_cli.engines.base import BatchRequest, Views
from ulskip_cli.engines.loop import Drafter, SteppingSession
from ulskip_cli.engines.torch import kernels
from ulskip_cli.engines.torch.decode_steps import DecodeSteps, EagerSteps, NativeSteps
from ulskip_cli.engines.torch.kernels import is_linear, linear_weight, packed
from ulskip_cli.engines.torch.native_model import NativeModel, unrecognized_reason
from ulskip_cli.inference import kv_cache
from ulskip_cli.inference.teacher_forcing import encode_prompt

NATIVE, PANELS, TORCH = "native", "panels", "torch"
# The most tokens of all prompts of a batch that the kernels read faster than a forward pass.
PROMPT_TOKENS = {torch.float32: 1024, torch.bfloat16: 128}
MEMORY_SHARE = 0.25  # limit of the packed copies, as a share of the free memory


@dataclass(frozen=True)
class Backend:
    """The implementation of the decode steps of a model and all of its views."""

    # `native` (one call a step) or `panels` (packed linear layers), both kernels.cpp, or `torch`
    name: str
    reason: str | None = None  # why it is not `native` on a CPU


# The backend of each model, and the dtypes and devices of its weights at that time.
_chosen: WeakKeyDictionary[nn.Module, tuple[object, Backend]] = WeakKeyDictionary()


def choose_backend(
    model: PreTrainedModel, on_build: Callable[[], object] = lambda: None
) -> Backend:
    """Choose the backend of a loaded model and all of its views.

    Later calls return the first choice, so that the full model and its schedules run on one
    backend. If the model can use the kernels, the first call calls `on_build` and compiles them.
    """
    weights = [linear_weight(module) for module in model.modules() if is_linear(module)]
    kinds = frozenset((weight.dtype, weight.device.type) for weight in weights)
    known = _chosen.get(model)
    # The model may have been moved or cast since.
    if known is None or known[0] != kinds:
        known = _chosen[model] = (kinds, _choose(model, weights, on_build))
    return known[1]


def _choose(
    model: PreTrainedModel, weights: list[Tensor], on_build: Callable[[], object]
) -> Backend:
    """Return the fastest backend for a model whose linear layers have these weights, and the reason
    if a CPU has a faster one.
    """
    dtypes = {weight.dtype for weight in weights}
    if any(weight.device.type != "cpu" for weight in weights):
        return Backend(TORCH)
    if len(dtypes) != 1 or not dtypes <= set(kernels.DTYPES):
        return Backend(TORCH, "the weights are neither all float32 nor all bfloat16")
    needed = sum(weight.nbytes for weight in weights)
    if needed > MEMORY_SHARE * psutil.virtual_memory().available:
        return Backend(
            TORCH,
            f"packed weights need {needed} bytes, more than {MEMORY_SHARE:.0%} of the free memory",
        )
    # The kernels read two adjacent bfloat16 values at once.
    if torch.bfloat16 in dtypes and any(weight.shape[1] % 2 for weight in weights):
        return Backend(TORCH, "a bfloat16 layer has an odd number of inputs")
    if failure := kernels.load_kernels(on_build):
        return Backend(TORCH, failure)
    unrecognized = unrecognized_reason(model)
    return Backend(PANELS if unrecognized else NATIVE, unrecognized)


class TorchSession(SteppingSession):
    """Greedy decoding and sampling with the views of a plan: a torch model encodes the prompts of a
    batch, and the decode steps extend the KV cache of its prompts.
    """

    steps: DecodeSteps  # of the batch

    def step_model(self, view: PreTrainedModel) -> NativeModel | PreTrainedModel:
        """Return what runs the steps of a view: the kernels, or the view, perhaps with packed
        weights.
        """
        backend = self.views.linear_backend
        if backend == NATIVE:
            return NativeModel(view)
        return packed(view) if backend == PANELS else view

    @functools.cached_property
    def step_models(self) -> list[NativeModel | PreTrainedModel]:
        """Return what runs the steps of each stage."""
        return [self.step_model(stage.view) for stage in self.views.stages]

    @functools.cached_property
    def prompt_model(self) -> NativeModel | None:
        """Return what reads short prompts in the kernels; None if a forward pass reads all prompts.
        A cache of sliding windows has only the end of a prompt, which a forward pass cuts.
        """
        if self.views.linear_backend != NATIVE:
            return None
        model = NativeModel(self.views.prompt_model)
        return None if model.slides else model

    def prepare(self) -> None:
        """Pack the weights, which making these models does."""
        _ = self.prompt_model, self.step_models

    def encode(self, request: BatchRequest) -> Tensor:
        """Start a batch; return the logits [batch, vocab_size] after its prompts."""
        ids, mask, native = request.input_ids, request.attention_mask, self.prompt_model
        if native and ids.numel() <= PROMPT_TOKENS[native.dtype]:
            prompt = native.encode(ids, mask)
        else:
            prompt = encode_prompt(self.views.prompt_model, ids, mask)
            request.on_prompt(prompt)
        cache = kv_cache.fork_cache(prompt.cache, self.views.stages[0].kept)
        self.kv_bytes = kv_cache.kv_bytes(prompt.cache), kv_cache.kv_bytes(cache)
        self.steps = self.make_steps(request, cache)
        return prompt.first_logits[:, -1]

    def make_steps(self, request: BatchRequest, cache: DynamicCache) -> DecodeSteps:
        """Return the decode steps of the first stage after a prompt, whose pruned cache they take
        over.
        """
        model, mask = self.step_models[0], request.attention_mask
        if isinstance(model, NativeModel):
            return NativeSteps(model, cache, mask, request.length)
        return EagerSteps(model, cache, mask, request.length)

    def check(self, tokens: Tensor) -> Tensor:
        """Return the logits [batch, count, vocab_size] after each of `tokens` [batch, count]."""
        return self.steps.logits(tokens)

    def choose(self, tokens: Tensor, banned: Tensor) -> Tensor:
        """Return the most likely token [batch, count] after each of `tokens` [batch, count], -1
        where no logit is finite; tokens in `banned` are not chosen.
        """
        return self.steps.choose(tokens, banned)

    def remove(self, count: int) -> None:
        """Forget the last `count` positions."""
        self.steps.remove(count)

    def keep(self, alive: Tensor) -> None:
        """Continue with the sequences at the indices `alive` [sequences] only."""
        self.steps.drop_finished(alive)

    def switch(self, stage: int) -> None:
        """Continue with the view of a later stage, which takes over the keys and values of its
        layers.
        """
        self.steps.switch(self.step_models[stage], self.views.stages[stage].kept)

    def details(self) -> Table:
        """Return the exact rows of a head that was screened."""
        return {"head_rows": self.steps.head_rows}

    def finish(self) -> None:
        """Free the KV cache of the batch."""
        vars(self).pop("steps", None)


class SpeculativeSession(TorchSession):
    """Decoding with the full model, which checks what is drafted."""

    def __init__(self, views: Views, *settings: object) -> None:
        super().__init__(views.at_full_depth())
        self._draft_stage = views.stages[0]

    @functools.cached_property
    def _draft_model(self) -> NativeModel | PreTrainedModel:
        return self.step_model(self._draft_stage.view)

    def drafter(self, request: BatchRequest) -> Drafter:
        """Return what drafts for a request: the kept layers, on the cache of the full model, which
        has their keys and values; or look-ups.
        """
        if request.decoding.draft != "layers":
            return super().drafter(request)
        steps = self.steps.beside(self._draft_model, self._draft_stage.kept)

        def draft(ids: Tensor, most: int) -> Tensor:
            """Draft `most` tokens greedily with the kept layers; the check overwrites the keys and
            values that drafting adds.
            """
            tokens, banned = [ids[:, -1:]], ids[0, :0]  # no token is banned
            for _ in range(most):
                # -1, where no logit is finite, is no token that a model can read
                tokens.append(steps.choose(tokens[-1], banned).clamp(min=0))
            steps.remove(most)  # the check adds these positions again
            return torch.cat(tokens[1:], dim=1)[0]

        return draft
