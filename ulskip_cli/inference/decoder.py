"""Prompts in, tokens out, under one schedule, by one of two engines, with every phase on its own clock."""

import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ulskip_cli.core.config_schema import DecodingConfig
from ulskip_cli.core.errors import UsageError
from ulskip_cli.inference import shallow_view
from ulskip_cli.inference.batching import BatchSize, in_batches, padded
from ulskip_cli.inference.engines import early_exit, fast, speculative
from ulskip_cli.inference.engines.base import BatchOutput, BatchRequest, Engine
from ulskip_cli.inference.engines.hf_generate import TransformersEngine
from ulskip_cli.inference.layerwise import LayerwiseModel
from ulskip_cli.inference.packed_linear import TORCH, LinearBackend, choose_linear_backend
from ulskip_cli.inference.stages import stage_views
from ulskip_cli.inference.timing import now
from ulskip_cli.strategies.exit_rule import ExitRule
from ulskip_cli.strategies.plan import Plan


@dataclass(frozen=True)
class DecodeContext:
    decoding: DecodingConfig
    pad_token_id: int
    seed: int = 0


class Decoder:
    """A model under one schedule, ready to generate."""

    def __init__(self, model: PreTrainedModel, plan: Plan, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
        """Build the views; the model is not touched.

        Args:
            model: the full model, in evaluation mode.
            plan: which layers to keep, and whether the prompt goes through all of them.
            tokenizer: the model's, to look for stop strings.
        """
        self.model = model
        self.tokenizer = tokenizer
        self.device = shallow_view.input_device(model)
        self.prompt_model, self.stages = stage_views(model, plan)
        self._linear_backend = choose_linear_backend(model)
        backend = self._linear_backend.name
        draft_cost = 1 / (plan.predicted_speedup or plan.layer_ratio)
        self._engines: dict[str, Engine] = {
            "fast": fast.FastEngine(self.prompt_model, self.stages, self.device, backend),
            "transformers": TransformersEngine(self.prompt_model, self.stages, self.device, tokenizer),
            "speculative": speculative.SpeculativeEngine(model, self.view, plan.kept_layers, self.device, draft_cost, backend),
        }
        self.exits = plan.exits
        if plan.exits:
            self._engines["early_exit"] = early_exit.EarlyExitEngine(model, plan.exits, self.device, backend)

    @property
    def view(self) -> PreTrainedModel:
        """What runs the first decode steps."""
        return self.stages[0].view

    def with_stage_switch(self, first_step: int) -> "Decoder":
        """The same with a second stage that begins elsewhere; what was compiled and packed serves both."""
        first, second = self.stages
        moved = copy.copy(self)
        moved.stages = (first, replace(second, first_step=first_step))
        loop = copy.copy(self._engines["fast"])
        assert isinstance(loop, fast.FastEngine)
        loop.stages = moved.stages
        slow = TransformersEngine(self.prompt_model, moved.stages, self.device, self.tokenizer)
        moved._engines = {**self._engines, "fast": loop, "transformers": slow}
        return moved

    def with_exit_rule(self, rule: ExitRule) -> "Decoder":
        """The same under another rule for exits; what was packed serves both."""
        other = copy.copy(self)
        loop = self._engines["early_exit"]
        assert isinstance(loop, early_exit.EarlyExitEngine)
        other.exits, other._engines = rule, {**self._engines, "early_exit": loop.with_exit_rule(rule)}
        return other

    @functools.cached_property
    def parts(self) -> LayerwiseModel:
        """The model taken apart, to look at what it thinks behind each of its layers."""
        return LayerwiseModel(self.model)

    def engine(self, decoding: DecodingConfig) -> tuple[str, str | None]:
        """The engine that serves a decoding configuration, and why it is not the fast one.

        Raises:
            UsageError: the fast engine is asked for and cannot serve it, or drafts are, and cannot be made.
        """
        if self.exits:
            early_exit.check(self.model, self.exits, decoding)
            return "early_exit", None
        if decoding.draft_tokens:
            speculative.check(self.model, self.view, decoding)
            return "speculative", None
        if decoding.engine == "transformers":
            return "transformers", "asked for"
        reason = fast.unsupported_reason(self.model, decoding)  # not of the view: all schedules of a model take one engine
        if reason and decoding.engine == "fast":
            raise UsageError(f"decoding.engine=fast does not serve {reason}; use decoding.engine=auto")
        return ("transformers" if reason else "fast"), reason

    def linear_backend(self, decoding: DecodingConfig) -> LinearBackend:
        """The linear backend that serves a decoding configuration."""
        engine, _ = self.engine(decoding)
        return LinearBackend(TORCH, "the transformers engine") if engine == "transformers" else self._linear_backend

    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        context: DecodeContext,
        forced_length: int | None = None,
        on_step: Callable[[int], None] | None = None,
    ) -> BatchOutput:
        """Generate for one batch.

        Args:
            input_ids: [batch, prompt_len], padded on the left.
            attention_mask: [batch, prompt_len].
            decoding: how tokens are chosen.
            pad: the id that fills up finished sequences.
            forced_length: generate exactly that many tokens, the end token forbidden; None: decoding's limit.
            seed: of sampling.
            on_step: called after every step with the tokens generated so far in the batch.
        """
        decoding, pad, seed = context.decoding, context.pad_token_id, context.seed
        engine, _ = self.engine(decoding)
        ids, mask = input_ids.to(self.device), attention_mask.to(self.device)
        ends = _as_list(self.model.generation_config.eos_token_id)
        length = forced_length or decoding.max_new_tokens
        request = BatchRequest(ids, mask, decoding, pad, ends, length, bool(forced_length), on_step)
        try:
            with torch.inference_mode():
                compile_seconds = self._engines[engine].prepare(request)
                if decoding.do_sample:
                    torch.manual_seed(seed)
                start = now(self.device)
                run = self._engines[engine].run(request)
        except (TypeError, ValueError) as error:  # transformers checks many options only where it uses them
            if not decoding.options:
                raise
            raise UsageError(f"decoding.options: {' '.join(str(error).split())[:200]}") from None
        if forced_length:
            ends = []
        rows = [_trimmed(row, ends) for row in run.token_ids]
        if decoding.stop and not forced_length:
            rows = [self._until_stop(row, decoding.stop) for row in rows]
        return BatchOutput(
            token_ids=rows,
            hit_limit=[len(row) >= length and row[-1] not in ends for row in rows],
            prompt_tokens=int(mask.sum()),
            prefill_seconds=run.prefilled_at - start,
            first_token_seconds=run.first_at - start,
            decode_seconds=run.end - run.first_at,
            prompt_kv_bytes=run.prompt_kv_bytes,
            kept_kv_bytes=run.kept_kv_bytes,
            engine=engine,
            compile_seconds=compile_seconds,
            drafts=run.drafts,
            exits=run.exits,
            linear_backend=run.linear_backend,
            compiled=run.compiled,
        )

    def _until_stop(self, row: list[int], stops: Sequence[str]) -> list[int]:
        """The ids up to the one that completes a stop string; others of the batch may have gone on."""
        tokenizer = self.tokenizer
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
    """Generate for many prompts in batches of like length.

    Longest first, so that what does not fit into memory shows at once. Sampling starts anew in every batch, from
    the seed and the batch's first prompt, so that a batch is the same whatever was generated before it.

    Args:
        decoder: the model under a schedule.
        prompts: token ids of any number.
        decoding: how tokens are chosen.
        size: sequences at once.
        pad: padding id.
        seed: of sampling.
        on_tokens: called as tokens come, with the number of prompts done and of tokens generated.
        skip: the number of prompts that are answered already, the first in `longest_first`.

    Yields:
        The positions in `prompts` that a batch serves, and what it generated.
    """
    done, tokens = skip, 0

    def work(positions: Sequence[int]) -> BatchOutput:
        ids, mask = padded([prompts[i] for i in positions], context.pad_token_id, left=True)
        on_step = None if on_tokens is None else lambda new: on_tokens(done, tokens + new)
        return decoder.generate(ids, mask, replace(context, seed=_batch_seed(context.seed, positions[0])), on_step=on_step)

    for positions, output in in_batches(longest_first(prompts)[skip:], size, work):
        done += len(positions)
        tokens += output.generated_tokens
        if on_tokens:
            on_tokens(done, tokens)
        yield positions, output


def longest_first(prompts: Sequence[list[int]]) -> list[int]:
    """The order in which prompts are answered, by position."""
    return sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))


def until_stop(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """A text up to the first of some strings, and whether there was one.

    >>> until_stop("a b. END c", ["END"])
    ('a b. ', True)
    """
    found = [at for at in (text.find(stop) for stop in stops) if at >= 0]
    return (text[: min(found)], True) if found else (text, False)


def _batch_seed(seed: int, position: int) -> int:
    """Distinct for every seed and first prompt, within what torch takes."""
    return (seed * 1_000_003 + position) % 2**63


def _as_list(eos: int | list[int] | None) -> list[int]:
    return [] if eos is None else [eos] if isinstance(eos, int) else list(eos)


def _trimmed(row: list[int], ends: list[int]) -> list[int]:
    """The ids up to and with the first end token."""
    stop = next((i for i, token in enumerate(row) if token in ends), None)
    return row if stop is None else row[: stop + 1]
