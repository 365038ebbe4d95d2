"""The session of the engine on torch: what reads the prompts of a batch and what runs its steps."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from ulskip_cli.core.answer import Request
from ulskip_cli.core.capabilities import Need
from ulskip_cli.engines.base import UNWATCHED, Prompts, Watch
from ulskip_cli.engines.loop import Drafter, SteppingSession
from ulskip_cli.engines.torch.decode_steps import (
    DecodeSteps,
    EagerSteps,
    ExitSteps,
    LayerwiseSteps,
    NativeSteps,
)
from ulskip_cli.engines.torch.drafts import CopyDrafter, DraftLength, measure_draft_length
from ulskip_cli.engines.torch.native_model import NativeBackend, NativeModel
from ulskip_cli.inference import kv_cache
from ulskip_cli.inference.layerwise import LayerwiseModel
from ulskip_cli.inference.teacher_forcing import encode_prompt

# The most tokens of all prompts of a batch that the kernels read faster than a forward pass.
PROMPT_TOKENS = {torch.float32: 1024, torch.bfloat16: 128}


class TorchSession(SteppingSession):
    """Decoding with the views of a plan: one model encodes the prompts of a batch, and the decode
    steps of the stages' views extend their KV cache, with early exit each to a depth of its own.
    """

    steps: DecodeSteps  # of the batch

    @functools.cached_property
    def step_model(self) -> Callable[[PreTrainedModel], NativeModel | PreTrainedModel]:
        """A function that returns the model that runs a view's steps; each is made once."""
        return functools.cache(self.views.backend.step_model)

    @functools.cached_property
    def layerwise(self) -> LayerwiseModel:
        """The full model, split into its layers, which run one by one without a native step."""
        return LayerwiseModel(self.step_model(self.views.model))

    @property
    def prompt_kernels(self) -> NativeModel | None:
        """The model that reads short prompts in the kernels; None if a forward pass reads all
        prompts. A cache of sliding windows has only the end of a prompt, which a forward pass cuts.
        """
        reader = self.views.prompt_model
        reads_by_first = reader not in (self.views.model, self.views.stages[0].view)
        if reads_by_first or not isinstance(self.views.backend, NativeBackend):
            return None  # the kernels cannot read by prompt_layers=first:K
        model = self.step_model(reader)
        return model if isinstance(model, NativeModel) and not model.slides else None

    @functools.cached_property
    def draft_model(self) -> NativeModel:
        """The copy of the first stage's view in 4 bits."""
        assert isinstance(
            self.views.backend, NativeBackend
        )  # else `engine_for` refuses these drafts
        return self.views.backend.draft_model(self.views.stages[0].view)

    @functools.cached_property
    def draft_length(self) -> DraftLength:
        """How many tokens the copy drafts, which its speed and all batches so far decide."""
        model = self.step_model(self.views.stages[0].view)
        assert isinstance(model, NativeModel)
        return measure_draft_length(model, self.draft_model)

    def prepare(self, request: Request) -> None:
        """Make the cached models that run batches, which packs the weights."""
        models = [self.step_model(stage.view) for stage in self.views.stages]
        _ = self.prompt_kernels
        if _drafts_by_copy(request):
            _ = self.draft_length
        if self.views.exits and not all(isinstance(model, NativeModel) for model in models):
            _ = self.layerwise

    def encode(self, prompts: Prompts, request: Request, watch: Watch = UNWATCHED) -> Tensor:
        """Start a batch; return the logits [batch, vocab_size] after its prompts. If a forward pass
        encodes them, `watch.on_prompt` gets the encoded prompts.
        """
        ids, mask, kernel_model = prompts.input_ids, prompts.attention_mask, self.prompt_kernels
        if kernel_model and ids.numel() <= PROMPT_TOKENS[kernel_model.dtype]:
            prompt = kernel_model.encode(ids, mask)
        else:
            prompt = encode_prompt(self.views.prompt_model, ids, mask)
            watch.on_prompt(prompt)
        stage = self.views.stages[0]
        cache = kv_cache.fork_cache(prompt.cache, stage.places)
        self.kv_bytes = kv_cache.kv_bytes(prompt.cache), kv_cache.kv_bytes(cache)
        self.steps = self._steps(stage.view, prompts, request, cache)
        return prompt.first_logits[:, -1]

    def _steps(
        self, view: PreTrainedModel, prompts: Prompts, request: Request, cache: DynamicCache
    ) -> DecodeSteps:
        """Return the decode steps of a view after prompts, whose pruned cache they take over."""
        model, rule = self.step_model(view), self.views.exits
        batch = cache, prompts.attention_mask, request.length
        steps: NativeSteps | LayerwiseSteps
        if isinstance(model, NativeModel):
            steps = NativeSteps(model, *batch)
        elif rule:
            steps = LayerwiseSteps(self.layerwise, model, *batch)
        else:
            return EagerSteps(model, *batch)
        if not rule:
            return steps
        return ExitSteps(steps, rule, prompts.input_ids, request.stop_token_ids)

    def logits(self, tokens: Tensor) -> Tensor:
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

    def drafter(self, request: Request) -> Drafter:
        """Return what drafts for a request: look-ups, or also the copy in 4 bits."""
        if not _drafts_by_copy(request):
            return super().drafter(request)
        places = self.views.stages[0].places
        return CopyDrafter(lambda: self.steps.beside(self.draft_model, places), self.draft_length)

    def keep(self, alive: Tensor) -> None:
        """Continue with the sequences at the indices `alive` [sequences] only."""
        self.steps.keep(alive)

    def switch(self, stage: int) -> None:
        """Continue with the view of a later stage, which takes over the keys and values of its
        layers.
        """
        later = self.views.stages[stage]
        self.steps.switch(self.step_model(later.view), later.places)

    def details(self) -> dict[str, Any]:
        """Return what the steps measured."""
        return self.steps.details()

    def finish(self) -> None:
        """Free the KV cache of the batch."""
        vars(self).pop("steps", None)


def _drafts_by_copy(request: Request) -> bool:
    """Return True if a copy of the model in 4 bits drafts."""
    return Need.COPY_DRAFTS in request.decoding.needs()
