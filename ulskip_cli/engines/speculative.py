"""Speculative decoding: the kept layers draft tokens, and the full model verifies them in one forward pass."""

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from ulskip_cli.core.config_schema import AUTO, DecodingConfig
from ulskip_cli.core.errors import UsageError
from ulskip_cli.engines.base import BatchRequest, DraftStats, Views
from ulskip_cli.engines.sampling import TokenSampler
from ulskip_cli.engines.torch import static_cache
from ulskip_cli.engines.torch.packed_linear import packed
from ulskip_cli.engines.torch.session import ModelSession, unsupported_reason
from ulskip_cli.engines.torch.static_cache import PositionsAndMasks
from ulskip_cli.inference import shallow_view
from ulskip_cli.strategies.cost import draft_vocab_size, drafting_speedup

MAX_DRAFTS = 12
PRIOR_ACCEPTED, PRIOR_CHECKED = 3.0, 4.0  # initial counts: 3 of 4 drafts accepted
DECAY = 0.9  # weight of earlier checks after each check


class DraftLength:
    """A fixed draft length, or for `auto` the length with the best `drafting_speedup` at the observed acceptance rate."""

    def __init__(self, setting: int | str, draft_cost: float) -> None:
        self.setting, self.draft_cost = setting, draft_cost
        self._accepted, self._checked = PRIOR_ACCEPTED, PRIOR_CHECKED

    def next(self) -> int:
        """Return the next number of tokens to draft, at least 1."""
        if self.setting != AUTO:
            return int(self.setting)
        acceptance = self._accepted / self._checked
        return max(range(1, MAX_DRAFTS + 1), key=lambda k: drafting_speedup(acceptance, k, self.draft_cost))

    def update(self, accepted: int, drafted: int) -> None:
        """Update the acceptance rate after a check; drafts after the first rejected draft do not count as tested."""
        self._accepted = DECAY * self._accepted + accepted
        self._checked = DECAY * self._checked + min(accepted + 1, drafted)


@dataclass(frozen=True)
class DraftVerification:
    """The result of checking k drafts of every sequence."""

    tokens: Tensor  # [batch, k + 1]; valid up to tokens[i, accepted[i]], which the full model chose
    accepted: Tensor  # [batch], from 0 to k


def verify_greedy(drafts: Tensor, scores: Tensor) -> DraftVerification:
    """Accept the drafts [batch, k] that equal the argmax of the full model's scores [batch, k + 1, vocab_size]."""
    tokens = scores.argmax(dim=-1)
    return DraftVerification(tokens, _prefix_length(drafts == tokens[:, :-1]))


def verify_sampled(drafts: Tensor, draft_scores: Tensor, scores: Tensor) -> DraftVerification:
    """Accept a draft x with probability min(1, p(x) / q(x)), else draw from max(p - q, 0) (Sec. 2.3, arXiv:2211.17192).

    The tokens are distributed as if drawn from p, the distribution of the full model: p is the softmax of `scores`
    [batch, k + 1, vocab_size]. `drafts` [batch, k] were drawn from q, the softmax of `draft_scores` [batch, k, vocab_size].
    """
    p, q = torch.softmax(scores, dim=-1), torch.softmax(draft_scores, dim=-1)
    p_drafted, q_drafted = (shares.gather(-1, drafts[..., None])[..., 0] for shares in (p[:, :-1], q))
    accepted = _prefix_length(torch.rand_like(q_drafted) * q_drafted < p_drafted)
    rows = torch.arange(len(drafts), device=drafts.device)
    q = torch.cat([q, torch.zeros_like(p[:, :1])], dim=1)  # no draft follows the last one
    p_next = p[rows, accepted]
    rest = (p_next - q[rows, accepted]).clamp(min=0)
    rest = torch.where(rest.sum(-1, keepdim=True) > 0, rest, p_next)  # p = q up to rounding
    tokens = torch.cat([drafts, drafts.new_empty(len(drafts), 1)], dim=1)
    tokens[rows, accepted] = torch.multinomial(rest, num_samples=1)[:, 0]
    return DraftVerification(tokens, accepted)


def _prefix_length(flags: Tensor) -> Tensor:
    """Count the true flags before the first false flag of each row: [batch, k] to [batch]."""
    return flags.long().cumprod(dim=1).sum(dim=1)


def check(model: PreTrainedModel, view: PreTrainedModel, decoding: DecodingConfig) -> None:
    """Raise UsageError if drafting does not support a model, schedule or option."""
    if view is model:
        raise UsageError(
            f"decoding.draft_tokens={decoding.draft_tokens} requires a schedule that skips layers, got one that keeps all; "
            "use a higher ratio or another strategy or decoding.draft_tokens=0"
        )
    if reason := unsupported_reason(model, decoding):
        raise UsageError(
            f"decoding.draft_tokens={decoding.draft_tokens} is not supported with {reason}; use decoding.draft_tokens=0"
        )


class SpeculativeSession(ModelSession):
    """Lossless speculative decoding; the view of the first stage drafts, and the model verifies."""

    def __init__(self, views: Views) -> None:
        super().__init__(views, views.model, range(shallow_view.num_layers(views.model)))  # verification reads every layer
        self._drafting: dict[int, PreTrainedModel] = {}  # by the number of tokens that the head scores
        self._stats = DraftStats()

    @functools.cached_property
    def full(self) -> PreTrainedModel:
        """The full model with the weights of the linear backend."""
        return packed(self.views.model, self.views.linear_backend)

    @property
    def decode_model(self) -> nn.Module:
        """The full model."""
        model: nn.Module = self.full
        return model

    def drafting(self, decoding: DecodingConfig) -> PreTrainedModel:
        """Return the view that drafts, which shares the weights of the linear backend with the full model."""
        vocab_size = self.views.model.config.get_text_config(decoder=True).vocab_size
        size = draft_vocab_size(decoding, vocab_size)
        if size not in self._drafting:
            short = with_draft_head(self.views.stages[0].view, size)
            self._drafting[size] = packed(short, self.views.linear_backend)
        return self._drafting[size]

    def prepare(self, request: BatchRequest) -> float:
        """Pack the weights; the steps are never compiled."""
        _ = self.full, self.drafting(request.decoding)
        return 0.0

    def make_steps(self, request: BatchRequest, cache: DynamicCache) -> "DraftAndVerifyModels":
        """Return both models on the cache of a batch."""
        drafting = self.drafting(request.decoding)
        if head := draft_head_of(drafting):
            head.begin(torch.cat([request.input_ids.flatten(), request.input_ids.new_tensor(request.eos_token_ids)]))
        kept = self.views.stages[0].kept
        return DraftAndVerifyModels(self.full, drafting, kept, cache, request.attention_mask, request.length)

    def details(self) -> dict[str, Any]:
        """Return the linear backend and the counts of drafts."""
        return {**super().details(), "drafts": self._stats}

    def decode(self, ids: Tensor, request: BatchRequest, sampler: TokenSampler) -> None:
        """Fill `ids` [batch, prompt_len + length] from the second new token on."""
        prompt_len, total = request.input_ids.shape[1], ids.shape[1]
        at, models, device = prompt_len + 1, self.steps, ids.device
        eos_token_ids = torch.tensor(request.stop_token_ids, dtype=torch.long, device=device)
        lengths, stats = DraftLength(request.decoding.draft_tokens, self.views.draft_cost), DraftStats()
        rows, current = torch.arange(len(ids), device=device), ids.clone()  # indices and ids of the unfinished sequences
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
        self._stats = stats


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


class DraftHead(nn.Module):
    """The logits of the first tokens of the vocabulary and of a batch's prompts; all other tokens get -inf.

    A step then reads a part of the head's weight. Frequent tokens come first in most vocabularies, and answers repeat tokens
    of their prompt. FR-Spec (arXiv:2502.14856) chooses the part by frequencies that are counted before.
    """

    def __init__(self, head: nn.Linear, size: int) -> None:
        super().__init__()
        self.vocab_size, self.size = head.out_features, size
        self.first = nn.Linear(head.in_features, size, bias=head.bias is not None, device="meta")
        self.first.weight = nn.Parameter(head.weight.detach()[:size], requires_grad=False)
        if head.bias is not None:
            self.first.bias = nn.Parameter(head.bias.detach()[:size], requires_grad=False)
        self.weight, self.bias = head.weight, head.bias
        self.begin(torch.empty(0, dtype=torch.long, device=head.weight.device))

    def begin(self, ids: Tensor) -> None:
        """Score the tokens `ids` [any shape] too."""
        self._more_ids = torch.unique(ids[ids >= self.size])
        self._more_weight = self.weight.detach()[self._more_ids]
        self._more_bias = None if self.bias is None else self.bias.detach()[self._more_ids]

    def forward(self, hidden: Tensor) -> Tensor:
        """Multiply `hidden` [..., hidden_size] by the weights of the scored tokens; return [..., vocab_size]."""
        logits = hidden.new_full((*hidden.shape[:-1], self.vocab_size), -torch.inf)
        logits[..., : self.size] = self.first(hidden)
        logits[..., self._more_ids] = nn.functional.linear(hidden, self._more_weight, self._more_bias)
        return logits


def with_draft_head(view: PreTrainedModel, size: int) -> PreTrainedModel:
    """Return a copy of a view whose head scores the first `size` tokens; return `view` itself if its head is no plain layer."""
    head = view.get_output_embeddings()
    if type(head) is not nn.Linear or size >= head.out_features:
        return view
    short = DraftHead(head, size)
    changed = shallow_view.substituted(view, lambda module: short if module is head else None)
    assert isinstance(changed, PreTrainedModel)
    return changed


def draft_head_of(view: nn.Module) -> DraftHead | None:
    """Return the head of draft steps of a view, or None if it has another one."""
    return next((module for module in view.modules() if isinstance(module, DraftHead)), None)
