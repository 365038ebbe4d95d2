"""The fast engine: one token after another over fixed buffers, nothing made per step that can be made ahead."""

import functools
import inspect
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    PreTrainedModel,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from ulskip_cli import views
from ulskip_cli.generation import fixed_cache
from ulskip_cli.generation.output import Run
from ulskip_cli.generation.packed import packed
from ulskip_cli.schema import DecodingConfig
from ulskip_cli.timing import now

CHECK_STEPS = 8  # between looks at whether all sequences are done, where a look waits for the device


def why_not(model: PreTrainedModel, decoding: DecodingConfig) -> str | None:
    """The reason for which this engine does not serve a model or an option; None where it does."""
    if decoding.num_beams > 1:
        return "beams"
    if decoding.options:
        return f"decoding.options ({', '.join(decoding.options)})"
    if decoding.stop:
        return "stop strings"
    implementation = model.config.get_text_config(decoder=True)._attn_implementation
    if implementation not in ("sdpa", "eager"):
        return f"{implementation} attention"
    if not fixed_cache.can_fix(views.new_cache(model)):
        return "a cache of other things than keys and values"
    return None


class Loop:
    """Greedy decoding and sampling for one model and schedule."""

    def __init__(
        self, prompt_model: PreTrainedModel, view: PreTrainedModel, kept: tuple[int, ...], device: torch.device
    ) -> None:
        """Nothing is made before the first run.

        Args:
            prompt_model: encodes prompts.
            view: decodes.
            kept: the layers of `prompt_model` that `view` runs.
            device: where ids go.
        """
        self.prompt_model, self.view, self.kept, self.device = prompt_model, view, kept, device

    @functools.cached_property
    def decode_model(self) -> PreTrainedModel:
        """The view as it decodes: with packed weights where these are faster."""
        return packed(self.view)

    def run(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        decoding: DecodingConfig,
        pad: int,
        ends: Sequence[int],
        length: int,
        forced: bool,
        on_step: Callable[[int], None] | None,
    ) -> Run:
        """Generate for one batch, see `output.Engine`."""
        batch, prompt_len = input_ids.shape
        cache = views.new_cache(self.prompt_model)
        logits = views.forward_with_cache(self.prompt_model, input_ids, attention_mask, cache, last_only=True)
        prefilled_at = now(self.device)
        prompt_bytes, kept_bytes = views.kv_bytes(cache), views.kv_bytes(cache, self.kept)
        views.prune_cache(cache, self.kept)
        cache, cursor = fixed_cache.fixed(cache, prompt_len + length - 1)
        steps = _Steps(self.decode_model, cache, cursor, attention_mask, length)
        choose = _Chooser(decoding, prompt_len, ends, length if forced else 0, self.device)
        ids = torch.full((batch, prompt_len + length), pad, dtype=torch.long, device=self.device)
        ids[:, :prompt_len] = input_ids
        ids[:, prompt_len] = choose(ids[:, :prompt_len], logits[:, -1])
        first_at = now(self.device)
        if on_step:
            on_step(batch)
        finishing = torch.tensor(list(ends), device=self.device) if ends and not forced else None
        self._decode(ids, prompt_len, length, steps, choose, finishing, pad, on_step, decoding.do_sample)
        end = now(self.device)
        return Run(ids[:, prompt_len:].tolist(), prefilled_at, first_at, end, prompt_bytes, kept_bytes)

    def _decode(
        self,
        ids: Tensor,
        prompt_len: int,
        length: int,
        steps: "_Steps",
        choose: "_Chooser",
        ends: Tensor | None,
        pad: int,
        on_step: Callable[[int], None] | None,
        keep_all: bool,
    ) -> None:
        """Fill `ids` from its second new token on."""
        batch = len(ids)
        rows: Tensor | None = None  # of `ids` that are still decoded; None: all
        current = ids
        look = 1 if self.device.type == "cpu" else CHECK_STEPS
        done = torch.zeros(batch, dtype=torch.bool, device=self.device)
        if ends is not None:
            done = torch.isin(ids[:, prompt_len], ends)
        for step in range(1, length):
            if ends is not None and step % look == 0:
                alive = (~done).nonzero()[:, 0]
                if not len(alive):
                    break
                if 2 * len(alive) <= len(done) and not keep_all:  # sampling draws for whole batches
                    if rows is not None:
                        ids[rows] = current
                    rows = alive if rows is None else rows[alive]
                    current, done = ids[rows], done[alive]
                    steps.keep(alive)
            at = prompt_len + step
            chosen = choose(current[:, :at], steps(current[:, at - 1 : at]))
            if ends is not None:
                chosen = chosen.masked_fill(done, pad)
                done |= torch.isin(chosen, ends)
            current[:, at] = chosen
            if on_step:
                on_step(batch * (step + 1))
        if rows is not None:
            ids[rows] = current


class _Steps:
    """The view's forward pass for one new token of every sequence."""

    def __init__(
        self, view: PreTrainedModel, cache: DynamicCache, cursor: fixed_cache.Cursor, mask: Tensor, length: int
    ) -> None:
        self.view, self.cache, self.cursor = view, cache, cursor
        self.prompt_len = cursor.length
        self.with_positions = "position_ids" in inspect.signature(view.forward).parameters
        ahead = mask.new_ones(len(mask), length - 1)
        if self.with_positions:
            self.positions = mask.sum(1, keepdim=True) + torch.arange(length - 1, device=mask.device)
            self.masks = fixed_cache.step_masks(view, cache, mask, length - 1) if length > 1 else None
        else:  # positions come from the mask (ALiBi), which such models read themselves
            self.mask = torch.cat([mask, ahead], dim=1)

    def __call__(self, tokens: Tensor) -> Tensor:
        """Logits [batch, vocab_size] after `tokens` [batch, 1]."""
        step, end = self.cursor.length - self.prompt_len, self.cursor.length + 1
        if self.with_positions:
            options = {
                "position_ids": self.positions[:, step : step + 1],
                "attention_mask": fixed_cache.mask_at(self.masks, step, end),
            }
        else:
            options = {"attention_mask": self.mask[:, :end]}
        logits: Tensor = self.view(input_ids=tokens, cache=self.cache, use_cache=True, **options).logits
        self.cursor.length = end
        return logits[:, -1]

    def keep(self, alive: Tensor) -> None:
        """Go on with some of the sequences."""
        for layer in self.cache.layers:
            layer.keep_sequences(alive)
        if self.with_positions:
            self.positions = self.positions[alive]
            self.masks = fixed_cache.masks_of(self.masks, alive)
        else:
            self.mask = self.mask[alive]


class _Chooser:
    """From logits to token ids, by transformers' own processors in transformers' order."""

    def __init__(
        self, decoding: DecodingConfig, prompt_len: int, ends: Sequence[int], least: int, device: torch.device
    ) -> None:
        self.sample = decoding.do_sample
        processors = LogitsProcessorList()
        if decoding.repetition_penalty != 1:
            processors.append(RepetitionPenaltyLogitsProcessor(decoding.repetition_penalty))
        if decoding.no_repeat_ngram_size:
            processors.append(NoRepeatNGramLogitsProcessor(decoding.no_repeat_ngram_size))
        if least and ends:
            processors.append(MinNewTokensLengthLogitsProcessor(prompt_len, least, list(ends), device=device))
        if self.sample:
            if decoding.temperature != 1:
                processors.append(TemperatureLogitsWarper(decoding.temperature))
            if decoding.top_k:
                processors.append(TopKLogitsWarper(decoding.top_k))
            if decoding.top_p < 1:
                processors.append(TopPLogitsWarper(decoding.top_p))
        self.processors = processors

    def __call__(self, ids: Tensor, logits: Tensor) -> Tensor:
        """The next token of every sequence, [batch].

        Args:
            ids: [batch, len], prompt and tokens so far.
            logits: [batch, vocab_size].
        """
        scores = logits.float()
        if self.processors:
            scores = self.processors(ids, scores)
        if self.sample:
            return torch.multinomial(torch.softmax(scores, dim=-1), num_samples=1)[:, 0]
        return scores.argmax(dim=-1)
