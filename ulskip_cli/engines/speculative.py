"""Speculative decoding: drafters guess tokens, and the full model verifies them in one forward
pass.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import DynamicCache, PreTrainedModel

from ulskip_cli.core.config_schema import DecodingConfig
from ulskip_cli.core.errors import UsageError
from ulskip_cli.engines.base import BatchRequest, DraftStats, Views
from ulskip_cli.engines.draft_length import MAX_CHECK, DraftLength
from ulskip_cli.engines.drafters import (
    Drafter,
    Drafts,
    LayerDrafter,
    NgramDrafter,
    draft_head_of,
    with_draft_head,
)
from ulskip_cli.engines.sampling import TokenSampler
from ulskip_cli.engines.torch.decode_steps import EagerSteps
from ulskip_cli.engines.torch.packed_linear import packed
from ulskip_cli.engines.torch.session import ModelSession, unsupported_reason
from ulskip_cli.inference import shallow_view
from ulskip_cli.inference.timing import now
from ulskip_cli.strategies.cost import draft_vocab_size

MEASUREMENTS, MEASURED_SECONDS = (
    5,
    0.3,
)  # the least of each cost, and of all together; the shortest of each cost counts


@dataclass(frozen=True)
class DraftVerification:
    """The result of checking k drafts of every sequence."""

    tokens: Tensor  # [batch, k + 1]; valid up to tokens[i, accepted[i]], which the full model chose
    accepted: Tensor  # [batch], from 0 to k


def verify_greedy(drafts: Tensor, chosen: Tensor) -> DraftVerification:
    """Accept the drafts [batch, k] that equal the full model's choices [batch, k + 1]."""
    return DraftVerification(chosen, _prefix_length(drafts == chosen[:, :-1]))


def verify_sampled(drafts: Drafts, scores: Tensor) -> DraftVerification:
    """Accept a draft x with probability min(1, p(x) / q(x)), else draw from max(p - q, 0) (Sec.
    2.3, arXiv:2211.17192).

    The tokens are distributed as if drawn from p, the distribution of the full model: p is the
    softmax of `scores` [batch, k + 1, vocab_size]. The drafts were drawn from q, the softmax of
    their scores; a certain draft has q = 1.
    """
    ids, p = drafts.tokens, torch.softmax(scores, dim=-1)
    q = (
        functional.one_hot(ids, p.shape[-1]).to(p)
        if drafts.scores is None
        else torch.softmax(drafts.scores, dim=-1)
    )
    p_drafted, q_drafted = (shares.gather(-1, ids[..., None])[..., 0] for shares in (p[:, :-1], q))
    accepted = _prefix_length(torch.rand_like(q_drafted) * q_drafted < p_drafted)
    rows = torch.arange(len(ids), device=ids.device)
    q = torch.cat([q, torch.zeros_like(p[:, :1])], dim=1)  # no draft follows the last one
    p_next = p[rows, accepted]
    rest = (p_next - q[rows, accepted]).clamp(min=0)
    rest = torch.where(rest.sum(-1, keepdim=True) > 0, rest, p_next)  # p = q up to rounding
    tokens = torch.cat([ids, ids.new_empty(len(ids), 1)], dim=1)
    tokens[rows, accepted] = torch.multinomial(rest, num_samples=1)[:, 0]
    return DraftVerification(tokens, accepted)


def _prefix_length(flags: Tensor) -> Tensor:
    """Count the true flags before the first false flag of each row: [batch, k] to [batch]."""
    return flags.long().cumprod(dim=1).sum(dim=1)


def check(model: PreTrainedModel, decoding: DecodingConfig) -> None:
    """Raise UsageError if drafting does not support a model or option."""
    if reason := unsupported_reason(model, decoding):
        raise UsageError(
            f"decoding.draft_tokens={decoding.draft_tokens} is not supported with {reason}; use"
            " decoding.draft_tokens=0"
        )


class SpeculativeSession(ModelSession):
    """Lossless speculative decoding: the model verifies what n-grams or the view of the first stage
    draft.
    """

    def __init__(self, views: Views) -> None:
        super().__init__(
            views, views.model, range(shallow_view.num_layers(views.model))
        )  # verification reads every layer
        self._drafting: dict[
            int, PreTrainedModel
        ] = {}  # by the number of tokens that the head scores
        self._lengths: dict[
            tuple[Any, ...], list[DraftLength]
        ] = {}  # of the drafters, by the shape and kind of drafting
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
        """Return the view that drafts, which shares the weights of the linear backend with the full
        model.
        """
        vocab_size = self.views.model.config.get_text_config(decoder=True).vocab_size
        size = draft_vocab_size(decoding, vocab_size)
        if size not in self._drafting:
            short = with_draft_head(self.views.stages[0].view, size)
            self._drafting[size] = packed(short, self.views.linear_backend)
        return self._drafting[size]

    def drafters(
        self, steps: EagerSteps, decoding: DecodingConfig, sampler: TokenSampler
    ) -> list[Drafter]:
        """Return the drafters of a batch; the first that has a guess drafts."""
        drafters: list[Drafter] = []
        if decoding.draft != "layers":
            drafters.append(NgramDrafter())
        if decoding.draft != "ngram":
            drafters.append(
                LayerDrafter(self.drafting(decoding), self.views.stages[0].kept, steps, sampler)
            )
        return drafters

    def prepare(self, request: BatchRequest) -> float:
        """Measure the costs of drafts and checks once for each batch size; the steps are never
        compiled.
        """
        key, size, device = (
            _drafting_kind(request),
            min(MAX_CHECK, request.length - 1),
            request.input_ids.device,
        )
        if key in self._lengths or not size:
            return 0.0
        began = now(device)
        ids, mask = request.input_ids, request.attention_mask
        cache = shallow_view.new_cache(self.prompt_model)
        shallow_view.forward_with_cache(self.prompt_model, ids, mask, cache, last_only=True)
        steps = self.make_steps(replace(request, length=size + 1), cache)
        sampler = TokenSampler(request.decoding, ids.shape[1], (), 0, device)
        ids, drafters = (
            torch.cat([ids, ids[:, -1:]], dim=1),
            self.drafters(steps, request.decoding, sampler),
        )
        checks = [Drafts(ids[:, -1:].expand(-1, count)) for count in range(size)]
        seconds = _shortest(
            [
                *(functools.partial(drafter.propose, ids, 1) for drafter in drafters),
                *(
                    functools.partial(self._verify, ids, drafts, steps, sampler)
                    for drafts in checks
                ),
            ],
            device,
        )
        draft_seconds, check_seconds = seconds[: len(drafters)], seconds[len(drafters) :]
        check_costs = [longest / check_seconds[0] for longest in accumulate(check_seconds, max)]
        self._lengths[key] = [
            DraftLength(request.decoding.draft_tokens, cost / check_seconds[0], check_costs)
            for cost in draft_seconds
        ]
        return now(device) - began

    def make_steps(self, request: BatchRequest, cache: DynamicCache) -> EagerSteps:
        """Return steps of the full model on the cache of a batch."""
        head = (
            None
            if request.decoding.draft == "ngram"
            else draft_head_of(self.drafting(request.decoding))
        )
        if head:
            head.begin(
                torch.cat(
                    [
                        request.input_ids.flatten(),
                        request.input_ids.new_tensor(request.eos_token_ids),
                    ]
                )
            )
        return EagerSteps(self.full, cache, request.attention_mask, request.length, several=True)

    def details(self) -> dict[str, Any]:
        """Return the linear backend and the counts of drafts."""
        return {**super().details(), "drafts": self._stats}

    def decode(self, ids: Tensor, request: BatchRequest, sampler: TokenSampler) -> None:
        """Fill `ids` [batch, prompt_len + length] from the second new token on."""
        prompt_len, total = request.input_ids.shape[1], ids.shape[1]
        at, steps, stops = prompt_len + 1, self.steps, set(request.stop_token_ids)
        drafters = self.drafters(steps, request.decoding, sampler)
        lengths = self._lengths.get(_drafting_kind(request), [])
        rows = torch.arange(len(ids), device=ids.device)  # the sequences that have not ended
        current, ended = ids.clone(), [token in stops for token in ids[:, prompt_len].tolist()]
        self._stats = DraftStats()
        while at < total and not all(ended):
            if any(ended):
                ids[rows] = current
                alive = torch.tensor(
                    [i for i, end in enumerate(ended) if not end], device=ids.device
                )
                rows = rows[alive]
                current = ids[rows]
                steps.drop_finished(alive)
            drafts, used = _draft(drafters, lengths, current[:, :at], total - at - 1)
            verification = self._verify(current[:, :at], drafts, steps, sampler)
            counts, ends = _count_drafts(verification, stops)
            drafted = drafts.tokens.shape[1]
            for length in used:
                length.update(counts.gained - 1, drafted)
            self._stats += replace(counts, plain_steps=used[0].cost(drafted) if used else 1.0)
            current[:, at : at + counts.gained] = verification.tokens[:, : counts.gained]
            ended = [end <= counts.gained for end in ends]
            for row, end in enumerate(ends):
                if end < counts.gained:
                    current[row, at + end : at + counts.gained] = request.pad_token_id
            at += counts.gained
            if request.on_step:
                request.on_step(len(ids) * (at - prompt_len))
        ids[rows] = current

    def _verify(
        self, ids: Tensor, drafts: Drafts, steps: EagerSteps, sampler: TokenSampler
    ) -> DraftVerification:
        """Check drafts after `ids` [batch, len] with the full model; without drafts, this is a
        plain step.
        """
        at, drafted = ids.shape[1], torch.cat([ids, drafts.tokens], dim=1)
        steps.rewind(at - 1)
        logits = steps.forward(drafted[:, at - 1 :], steps.view, steps.cache)
        # Penalties depend on the prefix, which differs for each position; prefixes include drafts.
        scores = [
            sampler.scores(drafted[:, : at + i], logits[:, i]) for i in range(logits.shape[1])
        ]
        if sampler.sample:
            return verify_sampled(drafts, torch.stack(scores, dim=1))
        return verify_greedy(
            drafts.tokens, torch.stack([sampler.pick(score) for score in scores], dim=1)
        )


def _drafting_kind(request: BatchRequest) -> tuple[Any, ...]:
    decoding, size = request.decoding, min(MAX_CHECK, request.length - 1)
    return len(request.input_ids), size, decoding.draft, decoding.draft_tokens, decoding.draft_vocab


def _shortest(calls: Sequence[Callable[[], object]], device: torch.device) -> list[float]:
    """Return the shortest of several measurements of each call, in seconds."""
    seconds, rounds, end = [float("inf")] * len(calls), 0, now(device) + MEASURED_SECONDS
    while rounds < MEASUREMENTS or now(device) < end:
        for i, call in enumerate(calls):
            began = now(device)
            call()
            seconds[i] = min(seconds[i], now(device) - began)
        rounds += 1
    return seconds


def _draft(
    drafters: Sequence[Drafter], lengths: Sequence[DraftLength], ids: Tensor, room: int
) -> tuple[Drafts, Sequence[DraftLength]]:
    """Return the drafts of the first drafter that has a guess, and its length; without any, no
    drafts and all lengths.
    """
    for drafter, length in zip(
        drafters, lengths, strict=False
    ):  # no lengths for answers that are too short for drafts
        count = min(length.next(), room)
        drafts = drafter.propose(ids, count) if count > 0 else Drafts(ids[:, :0])
        if drafts.tokens.shape[1]:
            return drafts, [length]
    return Drafts(ids[:, :0]), lengths


def _count_drafts(verification: DraftVerification, stops: set[int]) -> tuple[DraftStats, list[int]]:
    """Return the counts of one verification pass, and for each sequence the number of its tokens up
    to and with EOS.

    A batch advances by `gained` tokens, the smallest number of accepted drafts plus one. A sequence
    that reaches EOS in this pass does not limit the others, and its drafts after EOS are not
    counted. Its number is larger than all others if it does not reach EOS.
    """
    most = verification.tokens.shape[1]
    accepted, ends = verification.accepted.tolist(), []
    for row, count in zip(verification.tokens.tolist(), accepted, strict=True):
        ends.append(next((i + 1 for i in range(count + 1) if row[i] in stops), most + 1))
    running = [count + 1 for count, end in zip(accepted, ends, strict=True) if end > most]
    gained = min(running) if running else max(ends)
    drafted = [min(end, most - 1) for end in ends]
    return DraftStats(1, gained, sum(drafted), sum(map(min, accepted, drafted))), ends
