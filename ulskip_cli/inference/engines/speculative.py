"""The speculative engine: the kept layers draft tokens, and the full model verifies them in one forward pass."""

import functools
from dataclasses import replace

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from ulskip_cli.core.config_schema import DecodingConfig
from ulskip_cli.core.errors import UsageError
from ulskip_cli.inference import static_cache
from ulskip_cli.inference.draft_head import draft_head_of, with_draft_head
from ulskip_cli.inference.engines import fast
from ulskip_cli.inference.engines.base import BatchRequest, DraftStats, EngineOutput
from ulskip_cli.inference.engines.drafts import DraftLength, DraftVerification, verify_greedy, verify_sampled
from ulskip_cli.inference.packed_linear import linear_backend_of, packed
from ulskip_cli.inference.positions import PositionsAndMasks
from ulskip_cli.inference.sampling import TokenSampler
from ulskip_cli.inference.shallow_view import StageView
from ulskip_cli.strategies.cost import draft_vocab_size


def check(model: PreTrainedModel, view: PreTrainedModel, decoding: DecodingConfig) -> None:
    """Raise UsageError if this engine does not support a model, schedule or option."""
    if view is model:
        raise UsageError(
            f"decoding.draft_tokens={decoding.draft_tokens} requires a schedule that skips layers, got one that keeps all; "
            "use a higher ratio or another strategy or decoding.draft_tokens=0"
        )
    if reason := fast.unsupported_reason(model, decoding):
        raise UsageError(
            f"decoding.draft_tokens={decoding.draft_tokens} is not supported with {reason}; use decoding.draft_tokens=0"
        )


class SpeculativeEngine:
    """Lossless speculative decoding; the view of a stage drafts, and `model` verifies."""

    def __init__(
        self, model: PreTrainedModel, stage: StageView, device: torch.device, draft_cost: float, linear_backend: str
    ) -> None:
        self.model, self.view, self.kept, self.device, self.draft_cost = model, stage.view, stage.kept, device, draft_cost
        self.linear_backend = linear_backend
        self._drafting: dict[int, PreTrainedModel] = {}  # by the number of tokens that the head scores

    @functools.cached_property
    def full(self) -> PreTrainedModel:
        """The full model with the weights of the linear backend."""
        return packed(self.model, self.linear_backend)

    def drafting(self, decoding: DecodingConfig) -> PreTrainedModel:
        """Return the view that drafts, which shares the weights of the linear backend with the full model."""
        vocab_size = self.model.config.get_text_config(decoder=True).vocab_size
        size = draft_vocab_size(decoding, vocab_size)
        if size not in self._drafting:
            self._drafting[size] = packed(with_draft_head(self.view, size), self.linear_backend)
        return self._drafting[size]

    def prepare(self, request: BatchRequest) -> float:
        """Pack the weights; the steps are never compiled."""
        _ = self.full, self.drafting(request.decoding)
        return 0.0

    def run(self, request: BatchRequest) -> EngineOutput:
        """Generate for one batch."""
        drafts: list[DraftStats] = []

        def make_models(cache: DynamicCache) -> DraftAndVerifyModels:
            drafting = self.drafting(request.decoding)
            if head := draft_head_of(drafting):
                head.begin(torch.cat([request.input_ids.flatten(), request.input_ids.new_tensor(request.eos_token_ids)]))
            return DraftAndVerifyModels(self.full, drafting, self.kept, cache, request.attention_mask, request.length)

        def decode(ids: Tensor, request: BatchRequest, models: DraftAndVerifyModels, sampler: TokenSampler) -> None:
            drafts.append(self._decode(ids, models, sampler, request))

        depth = self.model.config.get_text_config(decoder=True).num_hidden_layers  # verification reads every layer
        output = fast.run(request, self.model, range(depth), make_models, self.device, decode)
        return replace(output, drafts=drafts[0], linear_backend=linear_backend_of(self.full))

    def _decode(self, ids: Tensor, models: "DraftAndVerifyModels", sampler: TokenSampler, request: BatchRequest) -> DraftStats:
        """Fill `ids` [batch, prompt_len + length] from the second new token on."""
        prompt_len, total = request.input_ids.shape[1], ids.shape[1]
        at = prompt_len + 1
        eos = [] if request.forced else list(request.eos_token_ids)
        eos_token_ids = torch.tensor(eos, dtype=torch.long, device=self.device)
        lengths, stats = DraftLength(request.decoding.draft_tokens, self.draft_cost), DraftStats()
        rows, current = torch.arange(len(ids), device=self.device), ids.clone()  # indices and ids of the unfinished sequences
        done = torch.isin(ids[:, at - 1], eos_token_ids)
        while at < total:
            alive = (~done).nonzero()[:, 0]
            if not len(alive):
                break
            if 2 * len(alive) <= len(done):
                ids[rows] = current
                rows, done = rows[alive], done[alive]
                current = ids[rows]
                models.drop_finished(alive)
            count = min(lengths.next(), total - at - 1)
            verification = _draft_and_verify(current, at, count, models, sampler)
            counts = _count_drafts(verification, eos_token_ids, done, count)
            lengths.update(counts.gained - 1, count)
            stats += counts
            fresh = verification.tokens[:, : counts.gained]
            is_eos = torch.isin(fresh, eos_token_ids).long()
            after_eos = done[:, None] | (is_eos.cumsum(dim=1) > is_eos)
            current[:, at : at + counts.gained] = fresh.masked_fill(after_eos, request.pad_token_id)
            done = done | is_eos.bool().any(dim=1)
            at += counts.gained
            current[:, at:] = request.pad_token_id
            models.rewind(at - 1)
            if request.on_step:
                request.on_step(len(ids) * (at - prompt_len))
        ids[rows] = current
        return stats


def _draft_and_verify(
    ids: Tensor, at: int, count: int, models: "DraftAndVerifyModels", sampler: TokenSampler
) -> DraftVerification:
    """Draft `count` tokens into `ids` [batch, len] from index `at` on, and verify them with the full model."""
    draft_scores = []
    for i in range(at, at + count):
        draft_scores.append(sampler.scores(ids[:, :i], models.draft(ids[:, i - 1 : i])))
        ids[:, i] = sampler.pick(draft_scores[-1])
    models.rewind(at - 1)
    logits = models.verify(ids[:, at - 1 : at + count])
    # Penalties depend on the prefix, which differs for each position; prefixes include drafts.
    scores = torch.stack([sampler.scores(ids[:, : at + i], logits[:, i]) for i in range(count + 1)], dim=1)
    drafts = ids[:, at : at + count]
    if not sampler.sample:
        return verify_greedy(drafts, scores)
    return verify_sampled(drafts, torch.stack(draft_scores, dim=1) if count else scores[:, :0], scores)


def _count_drafts(verification: DraftVerification, eos_token_ids: Tensor, done: Tensor, count: int) -> DraftStats:
    """Return the counts of one verification pass; `done` [batch] marks the sequences that finished earlier.

    The batch advances by `gained` tokens, the smallest number of accepted drafts plus one. A sequence that reaches EOS in
    this pass does not limit the others, and its drafts after EOS are not counted.
    """
    index = torch.arange(verification.tokens.shape[1], device=done.device)
    first_eos = torch.where(torch.isin(verification.tokens, eos_token_ids), index, len(index)).amin(dim=1)
    valid = torch.minimum(verification.accepted, first_eos) + 1  # tokens of each sequence up to and with EOS
    ends_now = first_eos <= verification.accepted
    live, continuing = ~done, ~done & ~ends_now
    gained = int(valid[continuing].min() if continuing.any() else valid[live].max())
    drafted = torch.where(ends_now, valid.clamp(max=count), count)
    accepted = torch.minimum(verification.accepted, drafted)
    return DraftStats(1, gained, int(drafted[live].sum()), int(accepted[live].sum()))


class DraftAndVerifyModels:
    """The full model and its view on one KV cache."""

    def __init__(
        self,
        full: PreTrainedModel,
        view: PreTrainedModel,
        kept: tuple[int, ...],
        cache: DynamicCache,
        mask: Tensor,
        length: int,
    ) -> None:
        """Take over a cache with the prompt in every layer; `mask` is [batch, prompt_len]."""
        self.full, self.view = full, view
        steps = length - 1  # no pass reads the last token
        self.cache, self.cursor = static_cache.fixed(cache, mask.shape[1] + steps)
        self.view_cache = DynamicCache()
        self.view_cache.layers = [self.cache.layers[i] for i in kept]  # verification overwrites what drafting wrote
        self.positions = PositionsAndMasks(full, self.cache, mask, steps)

    def draft(self, tokens: Tensor) -> Tensor:
        """Return the view's logits [batch, vocab_size] after `tokens` [batch, 1]."""
        return self._forward(self.view, self.view_cache, tokens)[:, -1]

    def verify(self, tokens: Tensor) -> Tensor:
        """Return the full model's logits [batch, count, vocab_size] after each of `tokens` [batch, count]."""
        return self._forward(self.full, self.cache, tokens)

    def rewind(self, length: int) -> None:
        """Keep only the first `length` tokens in the cache, prompt included."""
        self.cursor.length = length

    def drop_finished(self, alive: Tensor) -> None:
        """Keep only the sequences with the indices `alive` [sequences]."""
        for layer in self.cache.layers:
            layer.keep_sequences(alive)
        self.positions.drop_finished(alive)

    def _forward(self, model: PreTrainedModel, cache: DynamicCache, tokens: Tensor) -> Tensor:
        options = self.positions.options(self.cursor.length, tokens.shape[1])
        logits: Tensor = model(input_ids=tokens, cache=cache, use_cache=True, **options).logits
        self.cursor.length += tokens.shape[1]
        return logits
