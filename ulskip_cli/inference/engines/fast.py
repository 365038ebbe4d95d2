"""The fast engine: greedy decoding and sampling with a preallocated KV cache and precomputed masks and positions."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from ulskip_cli.core.config_schema import COMPILED, DecodingConfig
from ulskip_cli.core.errors import RunError
from ulskip_cli.inference import shallow_view, static_cache
from ulskip_cli.inference.batching import is_out_of_memory
from ulskip_cli.inference.decode_steps import (
    WARM_UP_STEPS,
    CompiledSteps,
    EagerSteps,
    StagedSteps,
    Steps,
    check_compiled,
)
from ulskip_cli.inference.engines.base import BatchRequest, EngineOutput
from ulskip_cli.inference.packed_linear import linear_backend_of, packed
from ulskip_cli.inference.sampling import TokenSampler
from ulskip_cli.inference.shallow_view import StageView
from ulskip_cli.inference.timing import now

CAPACITY_STEP = 128  # positions; capacities are rounded up, because each one is compiled separately
AnySteps = TypeVar("AnySteps")
CHECK_STEPS = 8  # steps between checks for finished sequences on a GPU, because a check synchronises


def unsupported_reason(model: PreTrainedModel, decoding: DecodingConfig) -> str | None:
    """Return the model property or option that this engine does not support, or None if everything is supported."""
    if decoding.num_beams > 1:
        return f"decoding.num_beams={decoding.num_beams}"
    if decoding.generate_kwargs:
        return f"decoding.generate_kwargs ({', '.join(decoding.generate_kwargs)})"
    if decoding.stop:
        return "decoding.stop"
    implementation = model.config.get_text_config(decoder=True)._attn_implementation
    if implementation not in ("sdpa", "eager"):
        return f"the attention implementation {implementation}"
    if not static_cache.can_fix(shallow_view.new_cache(model)):
        return "a cache with states other than keys and values"
    return None


class FastEngine:
    """Greedy decoding and sampling with one model and schedule."""

    def __init__(
        self, prompt_model: PreTrainedModel, stages: Sequence[StageView], device: torch.device, linear_backend: str
    ) -> None:
        self.prompt_model, self.stages, self.device, self.linear_backend = prompt_model, stages, device, linear_backend
        self._compiled: dict[tuple[int, int], list[CompiledSteps]] = {}  # by shape; empty: the steps cannot be compiled

    @functools.cached_property
    def decode_models(self) -> list[PreTrainedModel]:
        """The views of the stages, with the weights of the linear backend."""
        return [packed(stage.view, self.linear_backend) for stage in self.stages]

    def run(self, request: BatchRequest) -> EngineOutput:
        """Generate for one batch."""
        output = run(request, self.prompt_model, self.stages[0].kept, partial(self._steps, request), self.device, decode_steps)
        compiled = self._compiled_for(request) is not None
        return replace(output, linear_backend=linear_backend_of(self.decode_models[0]), compiled=compiled)

    def prepare(self, request: BatchRequest) -> float:
        """Pack the weights; compile the steps for this shape if compilation is on.

        Raises RunError if they cannot be compiled; with decoding.compile=auto they stay uncompiled.
        """
        decode_models = self.decode_models
        key = self._shape(request)
        if not self._compiles(request.decoding) or key in self._compiled or request.length < 2:
            return 0.0
        by_layer = request.decoding.compile == "layers"
        if by_layer and self.device.type != "cpu":
            raise RunError(f"expected a CPU for decoding.compile=layers, got {self.device}; use decoding.compile=on")
        cache = shallow_view.new_cache(self.prompt_model)
        shallow_view.forward_with_cache(self.prompt_model, request.input_ids, request.attention_mask, cache, last_only=True)
        made = []
        try:  # fails without a C++ compiler, and for models that torch.compile or our buffers do not support
            for stage, model in zip(self.stages, decode_models, strict=True):
                shallow_view.prune_cache(cache, stage.kept)
                made.append(CompiledSteps(model, cache, key[1], by_layer=by_layer))
                check_compiled(made[-1], shallow_view.fork_cache(cache, stage.kept), request.attention_mask)
        except (RuntimeError, torch._dynamo.exc.FailOnRecompileLimitHit) as error:
            if is_out_of_memory(error):
                raise
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            if request.decoding.compile != "auto":
                raise RunError(f"torch.compile failed on the decode step ({reason[:160]}); use decoding.compile=off") from None
            made = []
        self._compiled[key] = made
        return sum(steps.compile_seconds for steps in made)

    def _steps(self, request: BatchRequest, cache: DynamicCache) -> Steps:
        compiled = self._compiled_for(request)
        later: list[tuple[int, Callable[[Any], Steps]]] = []
        for i, (before, stage) in enumerate(pairwise(self.stages), start=1):
            kept = [before.kept.index(layer) for layer in stage.kept]
            switch = partial(EagerSteps.switch_to_view, view=self.decode_models[i], kept=kept)
            later.append((stage.first_step, partial(compiled[i].continue_from, kept=kept) if compiled else switch))
        if compiled is None:
            first: Steps = EagerSteps(self.decode_models[0], cache, request.attention_mask, request.length)
        else:
            first = compiled[0]
            compiled[0].begin(cache, request.attention_mask, request.length)
        return StagedSteps(first, later) if later else first

    def _compiled_for(self, request: BatchRequest) -> list[CompiledSteps] | None:
        return self._compiled.get(self._shape(request)) or None if self._compiles(request.decoding) else None

    def _compiles(self, decoding: DecodingConfig) -> bool:
        return decoding.compile in COMPILED or (decoding.compile == "auto" and self.device.type == "cuda")

    def _shape(self, request: BatchRequest) -> tuple[int, int]:
        batch, prompt_len = request.input_ids.shape
        needed = prompt_len + max(request.length - 1, WARM_UP_STEPS)
        return batch, -(-needed // CAPACITY_STEP) * CAPACITY_STEP


def decode_steps(ids: Tensor, request: BatchRequest, steps: Steps, sampler: TokenSampler) -> None:
    """Fill `ids` [batch, prompt_len + length] from the second new token on."""
    batch, prompt_len, device = len(ids), request.input_ids.shape[1], ids.device
    can_shrink = steps.can_shrink and not request.decoding.do_sample  # the random numbers of sampling depend on the batch size
    rows: Tensor | None = None  # rows of `ids` that are still decoded; None: all
    current = ids
    check_steps = 1 if device.type == "cpu" else CHECK_STEPS
    done = torch.zeros(batch, dtype=torch.bool, device=device)
    has_eos = bool(request.eos_token_ids) and not request.forced
    eos_token_ids = torch.tensor(list(request.eos_token_ids), dtype=torch.long, device=device)
    if has_eos:
        done = torch.isin(ids[:, prompt_len], eos_token_ids)
    for step in range(1, request.length):
        if has_eos and step % check_steps == 0:
            alive = (~done).nonzero()[:, 0]
            if not len(alive):
                break
            if 2 * len(alive) <= len(done) and can_shrink:
                if rows is not None:
                    ids[rows] = current
                rows = alive if rows is None else rows[alive]
                current, done = ids[rows], done[alive]
                steps.drop_finished(alive)
        at = prompt_len + step
        chosen = sampler(current[:, :at], steps(current[:, at - 1 : at]))
        if has_eos:
            chosen = chosen.masked_fill(done, request.pad_token_id)
            done |= torch.isin(chosen, eos_token_ids)
        current[:, at] = chosen
        if request.on_step:
            request.on_step(batch * (step + 1))
    if rows is not None:
        ids[rows] = current


def run(
    request: BatchRequest,
    prompt_model: PreTrainedModel,
    kept: Sequence[int],
    make_steps: Callable[[DynamicCache], AnySteps],
    device: torch.device,
    decode: Callable[[Tensor, BatchRequest, AnySteps, TokenSampler], None],
) -> EngineOutput:
    """Encode the prompts of a batch, then decode step by step with the keys and values of the layers `kept`.

    `make_steps` makes the steps from the prompt's KV cache, and `decode` fills the token ids [batch, prompt_len + length].
    """
    cache = shallow_view.new_cache(prompt_model)
    logits = shallow_view.forward_with_cache(prompt_model, request.input_ids, request.attention_mask, cache, last_only=True)
    prefilled_at = now(device)
    prompt_bytes, kept_bytes = shallow_view.kv_bytes(cache), shallow_view.kv_bytes(cache, kept)
    shallow_view.prune_cache(cache, kept)
    tokens, first_at, end = choose_tokens(request, logits[:, -1], make_steps(cache), decode)
    return EngineOutput(tokens, prefilled_at, first_at, end, prompt_bytes, kept_bytes)


def choose_tokens(
    request: BatchRequest,
    logits: Tensor,
    steps: AnySteps,
    decode: Callable[[Tensor, BatchRequest, AnySteps, TokenSampler], None],
) -> tuple[list[list[int]], float, float]:
    """Choose the tokens of a batch from the logits [batch, vocab_size] of its prompts and from the steps.

    Return the tokens, and the times after the first and after the last one.
    """
    input_ids, length, device = request.input_ids, request.length, request.input_ids.device
    batch, prompt_len = input_ids.shape
    sampler = TokenSampler(request.decoding, prompt_len, request.eos_token_ids, length if request.forced else 0, device)
    ids = torch.full((batch, prompt_len + length), request.pad_token_id, dtype=torch.long, device=device)
    ids[:, :prompt_len] = input_ids
    ids[:, prompt_len] = sampler(ids[:, :prompt_len], logits)
    first_at = now(device)
    if request.on_step:
        request.on_step(batch)
    decode(ids, request, steps, sampler)
    end = now(device)
    return ids[:, prompt_len:].tolist(), first_at, end
