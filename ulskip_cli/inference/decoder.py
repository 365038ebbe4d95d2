"""Generate with one schedule: choose the engine, time the phases, and truncate outputs at EOS and stop strings."""

import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ulskip_cli.core.config_schema import DecodingConfig
from ulskip_cli.core.engines import Engine as EngineChoice
from ulskip_cli.core.engines import engine_named
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.exit_rule import ExitRule
from ulskip_cli.core.strategy import LAYER
from ulskip_cli.inference import half_layers, shallow_view
from ulskip_cli.inference.batching import BatchSize, in_batches, padded
from ulskip_cli.inference.engines import early_exit, fast, speculative
from ulskip_cli.inference.engines.base import BatchOutput, BatchRequest, Engine, EngineOutput, LibraryEngine
from ulskip_cli.inference.engines.hf_generate import TransformersEngine
from ulskip_cli.inference.engines.runtime import RuntimeEngine
from ulskip_cli.inference.engines.runtimes import make_library_engine
from ulskip_cli.inference.layerwise import LayerwiseModel
from ulskip_cli.inference.packed_linear import TORCH, LinearBackend, choose_linear_backend
from ulskip_cli.inference.shallow_view import StageView
from ulskip_cli.inference.skip_adapter import SkipAdapter
from ulskip_cli.inference.timing import now
from ulskip_cli.strategies.plan import Plan


@dataclass(frozen=True)
class DecodeContext:
    """The decoding settings of all batches of a run."""

    decoding: DecodingConfig
    pad_token_id: int  # of shorter prompts and finished sequences
    seed: int = 0  # of sampling


class Decoder:
    """Generates with a model and one schedule. Only stop strings require the tokenizer, and the model is not changed."""

    def __init__(
        self,
        model: PreTrainedModel,
        plan: Plan,
        tokenizer: PreTrainedTokenizerBase | None = None,
        adapter: SkipAdapter | None = None,
        engine: EngineChoice | None = None,
    ) -> None:
        """Build the views of a plan; `adapter` corrects those that skip layers, and `engine` decodes (None: auto)."""
        self.model = model
        self._asked = engine or engine_named("auto")
        self.tokenizer = tokenizer
        self.device = shallow_view.input_device(model)
        self.prompt_model, self.stages = _stage_views(model, plan, adapter)
        self._linear_backend = choose_linear_backend(model)
        backend = self._linear_backend.name
        draft_cost = plan.draft_cost or 1 / (plan.predicted_speedup or plan.layer_ratio)
        self._engines: dict[str, Engine] = {
            "torch": fast.FastEngine(self.prompt_model, self.stages, self.device, backend),
            "transformers": TransformersEngine(self.prompt_model, self.stages, self.device, tokenizer),
            "speculative": speculative.SpeculativeEngine(model, self.stages[0], self.device, draft_cost, backend),
        }
        self.exits = plan.exits
        if self._asked.is_runtime:
            self._engines[self._asked.name] = make_library_engine(self._asked, self.prompt_model, self.stages)
        if plan.exits:
            self._engines["early_exit"] = early_exit.EarlyExitEngine(model, plan.exits, self.device, backend)

    @property
    def asked_engine(self) -> tuple[str, str | None]:
        """The name and the weights format of the engine that the configuration asks for."""
        return self._asked.name, self._asked.weights

    @property
    def view(self) -> PreTrainedModel:
        """The view that runs the first decode steps."""
        return self.stages[0].view

    def with_stage_switch(self, first_step: int) -> "Decoder":
        """Return a decoder whose second stage begins at `first_step`; both decoders share loaded views and compiled steps."""
        first, second = self.stages
        moved = copy.copy(self)
        moved.stages = (first, replace(second, first_step=first_step))
        slow = TransformersEngine(self.prompt_model, moved.stages, self.device, self.tokenizer)
        moved._engines = {**self._engines, "transformers": slow}
        for name, engine in self._engines.items():
            if isinstance(engine, fast.FastEngine | RuntimeEngine):
                moved._engines[name] = staged = copy.copy(engine)
                staged.stages = moved.stages
        return moved

    def with_engine(self, name: str) -> "Decoder":
        """Return a decoder with the engine auto, torch or transformers; both decoders share views and packed weights."""
        other = copy.copy(self)
        other._asked = engine_named(name)
        return other

    def with_exit_rule(self, rule: ExitRule) -> "Decoder":
        """Return a decoder with another exit rule; both decoders share packed weights."""
        other = copy.copy(self)
        engine = self._engines["early_exit"]
        assert isinstance(engine, early_exit.EarlyExitEngine)
        other.exits, other._engines = rule, {**self._engines, "early_exit": engine.with_exit_rule(rule)}
        return other

    @functools.cached_property
    def layerwise(self) -> LayerwiseModel:
        """The full model, split into its layers."""
        return LayerwiseModel(self.model)

    def engine(self, decoding: DecodingConfig) -> tuple[str, str | None]:
        """Return the engine for `decoding`, and the reason if it is `transformers`; raise UsageError if none supports it."""
        if self.exits:
            early_exit.check(self.model, self.exits, decoding)
            return "early_exit", None
        if decoding.draft_tokens:
            speculative.check(self.model, self.view, decoding)
            return "speculative", None
        asked = self._asked.name
        if asked == "transformers":
            return "transformers", "engine=transformers"
        if self.library_engine:
            return asked, f"engine={asked}"
        reason = fast.unsupported_reason(self.model, decoding)
        if reason and asked == "torch":
            raise UsageError(f"engine=torch is not supported with {reason}; engine=auto selects another")
        return ("transformers" if reason else "torch"), reason

    @property
    def library_engine(self) -> LibraryEngine | None:
        """The engine of another library that decodes, or None."""
        return cast(LibraryEngine, self._engines[self._asked.name]) if self._asked.is_runtime else None

    def linear_backend(self, decoding: DecodingConfig) -> LinearBackend:
        """Return the linear backend that decodes with `decoding`; raise UsageError if no engine supports `decoding`."""
        engine, _ = self.engine(decoding)
        if self.library_engine:
            return LinearBackend(engine, f"the engine is {engine}")
        return LinearBackend(TORCH, "the engine is transformers") if engine == "transformers" else self._linear_backend

    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        context: DecodeContext,
        forced_length: int | None = None,
        on_step: Callable[[int], None] | None = None,
    ) -> BatchOutput:
        """Generate for one batch; `input_ids` and `attention_mask` are [batch, prompt_len], padded on the left.

        With `forced_length`, every sequence gets exactly that many tokens with EOS suppressed. After every step `on_step` gets
        the number of tokens generated so far in the batch.
        """
        eos: int | list[int] | None = self.model.generation_config.eos_token_id
        request = BatchRequest(
            input_ids=input_ids.to(self.device),
            attention_mask=attention_mask.to(self.device),
            decoding=context.decoding,
            pad_token_id=context.pad_token_id,
            eos_token_ids=[] if eos is None else [eos] if isinstance(eos, int) else list(eos),
            length=forced_length or context.decoding.max_new_tokens,
            forced=bool(forced_length),
            on_step=on_step,
        )
        name, _ = self.engine(context.decoding)
        engine = self._engines[name]
        try:
            with torch.inference_mode():
                compile_seconds = engine.prepare(request)
                if context.decoding.do_sample:
                    torch.manual_seed(context.seed)
                start = now(self.device)
                output = engine.run(request)
        except (TypeError, ValueError) as error:  # transformers checks many options only when it uses them
            if not context.decoding.generate_kwargs:
                raise
            raise UsageError(
                f"decoding.generate_kwargs is refused by transformers ({' '.join(str(error).split())[:200]}); "
                f"correct or remove one of: {', '.join(context.decoding.generate_kwargs)}"
            ) from None
        return self._batch_output(request, output, name, start, compile_seconds)

    def _batch_output(
        self, request: BatchRequest, output: EngineOutput, engine: str, start: float, compile_seconds: float
    ) -> BatchOutput:
        eos_token_ids = [] if request.forced else request.eos_token_ids
        rows = [_trim_after_eos(row, eos_token_ids) for row in output.token_ids]
        if request.decoding.stop and not request.forced:
            rows = [self._trim_after_stop(row, request.decoding.stop) for row in rows]
        return BatchOutput(
            token_ids=rows,
            hit_max_length=[len(row) >= request.length and row[-1] not in eos_token_ids for row in rows],
            prompt_tokens=int(request.attention_mask.sum()),
            prefill_seconds=output.prefilled_at - start,
            first_token_seconds=output.first_at - start,
            decode_seconds=output.end - output.first_at,
            prompt_kv_bytes=output.prompt_kv_bytes,
            kept_kv_bytes=output.kept_kv_bytes,
            engine=engine,
            compile_seconds=compile_seconds,
            drafts=output.drafts,
            exits=output.exits,
            linear_backend=output.linear_backend,
            compiled=output.compiled,
        )

    def _trim_after_stop(self, row: list[int], stops: Sequence[str]) -> list[int]:
        tokenizer = self.tokenizer  # `generate` runs until all sequences have stopped, so some are too long
        assert tokenizer is not None

        def stopped(ids: list[int]) -> bool:
            return until_stop(tokenizer.decode(ids, skip_special_tokens=True), stops)[1]

        if not stopped(row):
            return row
        return row[: next(length for length in range(1, len(row) + 1) if stopped(row[:length]))]


def generate_all(
    decoder: Decoder,
    prompts: Sequence[list[int]],
    context: DecodeContext,
    size: BatchSize,
    on_tokens: Callable[[int, int], None] | None = None,
    skip: int = 0,
) -> Iterator[tuple[Sequence[int], BatchOutput]]:
    """Generate in batches of similar prompt length, longest first; yield the indices of each batch's prompts and the output.

    The first `skip` prompts in this order are left out. After every step `on_tokens` gets the numbers of finished prompts and
    generated tokens. The sampling seed of a batch depends only on the seed and the batch's first prompt.
    """
    done, tokens = skip, 0

    def work(positions: Sequence[int]) -> BatchOutput:
        ids, mask = padded([prompts[i] for i in positions], context.pad_token_id, left=True)
        on_step = None if on_tokens is None else lambda new: on_tokens(done, tokens + new)
        seeded = replace(context, seed=(context.seed * 1_000_003 + positions[0]) % 2**63)  # the range that torch accepts
        return decoder.generate(ids, mask, seeded, on_step=on_step)

    for positions, output in in_batches(longest_first(prompts)[skip:], size, work):
        done += len(positions)
        tokens += output.generated_tokens
        if on_tokens:
            on_tokens(done, tokens)
        yield positions, output


def longest_first(prompts: Sequence[list[int]]) -> list[int]:
    """Return the indices of the prompts, longest prompt first."""
    return sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))


def until_stop(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """Truncate a text before its first stop string; return the text, and True if a stop string was found.

    >>> until_stop("a b. END c", ["END"])
    ('a b. ', True)
    """
    found = [at for at in (text.find(stop) for stop in stops) if at >= 0]
    return (text[: min(found)], True) if found else (text, False)


def _stage_views(
    model: PreTrainedModel, plan: Plan, adapter: SkipAdapter | None
) -> tuple[PreTrainedModel, tuple[StageView, ...]]:
    everything = tuple(range(plan.num_layers))

    def view(kept: tuple[int, ...]) -> PreTrainedModel:
        if kept == everything:
            return model
        if plan.unit != LAYER:
            return half_layers.half_view(model, kept, plan.unit)
        return shallow_view.shallow_view(model, kept) if adapter is None else adapter.view(model, kept)

    views = {stage.kept_layers: view(stage.kept_layers) for stage in plan.stages}
    prompt_layers = plan.kept_layers if plan.prompt_layers == "kept" else everything
    stages = [
        StageView(stage.first_step, views[stage.kept_layers], tuple(map(prompt_layers.index, plan.cached_layers(stage))))
        for stage in plan.stages
    ]
    return (views[prompt_layers] if plan.prompt_layers == "kept" else model), tuple(stages)


def _trim_after_eos(row: list[int], eos_token_ids: Sequence[int]) -> list[int]:
    stop = next((i for i, token in enumerate(row) if token in eos_token_ids), None)
    return row if stop is None else row[: stop + 1]
