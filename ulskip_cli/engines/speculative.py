"""Speculative decoding: drafters guess tokens, and the full model, in any engine whose session
defines `check`, checks them in one pass.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ulskip_cli.core.config_schema import DecodingConfig
from ulskip_cli.core.files import Table
from ulskip_cli.core.task import AUTO
from ulskip_cli.engines.base import BatchRequest, DraftStats
from ulskip_cli.engines.loop import SteppingSession, now
from ulskip_cli.engines.sampling import (
    Drafts,
    TokenSampler,
    checked,
    prefix_length,
    verify_sampled,
)
from ulskip_cli.engines.torch.decode_steps import DecodeSteps
from ulskip_cli.engines.torch.native_model import NativeModel
from ulskip_cli.engines.torch.session import TorchSession

MAX_CHECK = 8  # tokens in a check whose cost is measured, the last accepted token included
MEASUREMENTS = 7  # of each cost; the shortest time counts
MIN_PROBABILITY = 0.6  # probability of a draft; nothing is drafted behind a less probable one
LONGEST = 3  # tokens that are looked up
UNLIMITED = 1_000_000  # drafts of one proposal
PRIOR_ACCEPTED, PRIOR_TESTED = 3.0, 4.0  # initial counts: 3 of 4 drafts accepted
CERTAIN = 1 - 1e-9  # the largest acceptance, because the formula divides by 1 - a
DECAY = 0.9  # weight of earlier checks after each check
CREDIT = 3.0  # plain steps that drafts may lose before they have to pay
# Share of the time of plain steps that each drafter may spend on trying drafts that did not pay.
MARGIN = 0.003


class NgramDrafter:
    """Drafts what first followed the last `size` tokens in the prompt and the answer.

    Fewer tokens than LONGEST draft at most as many, because the drafts behind are rarely accepted.
    """

    def __init__(self, size: int) -> None:
        self.size, self.most = size, UNLIMITED if size == LONGEST else size

    def propose(self, ids: Tensor, count: int) -> Drafts:
        """Return at most `count` drafts after `ids` [1, len]; none without a match."""
        text, first = ids[0].cpu().numpy(), self.size - 1
        places = (text[first:-1] == text[-1]).nonzero()[0] + first
        for back in range(1, min(self.size, len(text))):
            places = places[text[places - back] == text[-1 - back]]
        start = int(places[0]) + 1 if len(places) else len(text)
        return Drafts(ids[:, start : start + count])


class LayerDrafter:
    """Decodes with a view of the model, on the full model's keys and values."""

    most = UNLIMITED

    def __init__(self, steps: DecodeSteps, sampler: TokenSampler) -> None:
        """Draft with steps beside those of the full model; a check overwrites what they wrote."""
        self.steps, self.sampler = steps, sampler

    def propose(self, ids: Tensor, count: int) -> Drafts:
        """Draft after `ids` [1, len] until `count` tokens are drafted or one is improbable."""
        length, drafted, seen = ids.shape[1], list[Tensor](), self.steps.cursor.length
        self.steps.cursor.length = length - 1
        while len(drafted) < count:
            scores = self.sampler.scores(ids, self.steps.logits(ids[:, -1:])[:, -1])
            tokens = self.sampler.pick(scores)[:, None]
            drafted.append(scores)
            ids = torch.cat([ids, tokens], dim=1)
            if len(drafted) < count:
                chance = (scores.gather(-1, tokens) - scores.logsumexp(dim=-1)).exp()
                if float(chance) < MIN_PROBABILITY:
                    break
        self.steps.cursor.length = seen
        return Drafts(ids[:, length:], torch.stack(drafted, dim=1))


@dataclass
class DraftLength:
    """The draft length of a drafter: fixed, or for `auto` the one with the most tokens per second;
    0 if no drafts pay. Costs are times in plain steps.
    """

    setting: int | str
    draft_cost: float  # of one draft
    check_costs: Sequence[float]  # of checks of 1, 2, ... tokens
    accepted: float = PRIOR_ACCEPTED
    tested: float = PRIOR_TESTED
    credit: float = CREDIT

    def cost(self, count: int) -> float:
        """Return the time of `count` drafts and their check; the cost of checks that are larger
        than measured ones is proportional to their size.
        """
        known = min(count + 1, len(self.check_costs))
        return count * self.draft_cost + self.check_costs[known - 1] * (count + 1) / known

    def rate(self, count: int) -> float:
        """Return the expected tokens in the time of a plain step:
        (1 - a^(k+1)) / (1 - a) tokens of k drafts (Sec. 3.1 of arXiv:2211.17192) over their cost.
        """
        share = min(self.accepted / self.tested, CERTAIN)
        return (1 - share ** (count + 1)) / (1 - share) / self.cost(count)

    def next(self, most: int) -> int:
        """Return the number of tokens to draft, at most `most`. If no drafts seem to pay, return
        one if earlier gains cover its cost, else 0.
        """
        if self.setting != AUTO:
            return min(int(self.setting), most)
        counts = range(1, min(len(self.check_costs), most + 1))
        allowed = [count for count in counts if self.cost(count) - 1 <= self.credit]
        best = max([0, *allowed], key=self.rate)
        return best or (1 if allowed else 0)

    def update(self, accepted: int, drafted: int) -> None:
        """Count a check. Drafts after the first rejected one are not counted; a plain step counts 0
        of 0.
        """
        if drafted:
            self.accepted = DECAY * self.accepted + accepted
            self.tested = DECAY * self.tested + min(accepted + 1, drafted)
        gained = (1 + MARGIN) * (accepted + 1) - self.cost(drafted)
        self.credit = min(CREDIT, self.credit + gained)


class DraftCosts(NamedTuple):
    """Measured times, in plain steps."""

    drafts: Sequence[float]  # of one draft of each drafter
    checks: Sequence[float]  # of checks of 1, 2, ... tokens


class Drafting:
    """Lossless speculative decoding of one sequence: a session of the full model checks what
    n-grams draft or, on torch, the view of the first stage.
    """

    def __init__(self) -> None:
        self._costs: dict[tuple[int, DecodingConfig], DraftCosts] = {}
        self._model: NativeModel | PreTrainedModel | None = None  # drafts
        self.details: Table = {}  # of the last batch, for its `BatchOutput`

    def drafters(
        self, session: SteppingSession, request: BatchRequest, sampler: TokenSampler
    ) -> Sequence[NgramDrafter | LayerDrafter]:
        """Return the drafters of a request."""
        ngrams = [NgramDrafter(size) for size in range(LONGEST, 0, -1)]
        if request.decoding.draft == "ngram":
            return ngrams
        assert isinstance(session, TorchSession)  # engines without LAYER_DRAFTS refuse earlier
        stage = request.stages[0]
        if self._model is None:
            self._model = session.step_model(stage.view)
        layers = LayerDrafter(session.steps.beside(self._model, stage.kept), sampler)
        return [layers] if request.decoding.draft == "layers" else [*ngrams, layers]

    def prepare(self, session: SteppingSession, request: BatchRequest) -> float:
        """Measure the costs of drafts and checks once; return the seconds that this took."""
        key, device = _costs_key(request), request.input_ids.device
        largest, decoding = key
        if key in self._costs or not largest:
            return 0.0
        began = now(device)
        session.encode(replace(request, length=largest + 1))
        ids = torch.cat([request.input_ids, request.input_ids[:, -1:]], dim=1)
        sampler = TokenSampler(decoding, (), device)
        drafters = self.drafters(session, request, sampler)
        drafts, checks = [], []
        for _ in range(MEASUREMENTS):  # in turns, because the machine's speed changes
            drafts.append([_draft_seconds(drafter, ids) for drafter in drafters])
            sizes = range(largest)
            checks.append([self._check_seconds(session, ids, size, sampler) for size in sizes])
        draft_seconds, check_seconds = (
            [min(seconds) for seconds in zip(*rounds, strict=True)] for rounds in (drafts, checks)
        )
        step = check_seconds[0]
        self._costs[key] = DraftCosts(
            [seconds / step for seconds in draft_seconds],
            [seconds / step for seconds in accumulate(check_seconds, max)],
        )
        session.finish()
        return now(device) - began

    def decode(
        self, session: SteppingSession, ids: Tensor, request: BatchRequest, sampler: TokenSampler
    ) -> Iterator[int]:
        """Fill `ids` [1, prompt_len + length] from the second new token on, with any tokens after
        EOS; yield the number of new tokens after every check.
        """
        prompt_len, total = request.input_ids.shape[1], ids.shape[1]
        end, stops = prompt_len + 1, set(request.stop_token_ids)
        drafters = self.drafters(session, request, sampler)
        # Learned anew for every batch, so that its time does not depend on what ran before.
        costs = self._costs.get(_costs_key(request), DraftCosts([], []))
        setting = request.decoding.draft_tokens
        lengths = [DraftLength(setting, cost, costs.checks) for cost in costs.drafts]
        cheapest = min((length.cost(1) for length in lengths if costs.checks[1:]), default=None)
        stats = DraftStats()
        while end < total and int(ids[0, end - 1]) not in stops:
            drafts, used = Drafts(ids[:, :0]), lengths
            choices = [
                (length, length.next(min(drafter.most, total - end - 1)), drafter)
                for length, drafter in zip(lengths, drafters, strict=True)
            ]
            choices.sort(key=lambda choice: choice[0].rate(choice[1]), reverse=True)
            # The drafter with the most expected tokens per second that finds drafts is used.
            for length, count, drafter in choices:
                if count:
                    drafts = drafter.propose(ids[:, :end], count)
                if drafts.tokens.shape[1]:
                    used = [length]
                    break
            tokens, accepted = self._verify(session, ids[:, :end], drafts, sampler)
            check = _count_drafts(tokens[0].tolist(), accepted, stops)
            drafted = drafts.tokens.shape[1]
            for length in used:
                length.update(check.gained - 1, drafted)
            stats += replace(check, plain_steps=used[0].cost(drafted))
            ids[:, end : end + check.gained] = tokens[:, : check.gained]
            end += check.gained
            yield end - prompt_len
        checks = tuple(costs.checks)
        self.details = {"drafts": stats, "check_costs": checks, "draft_cost": cheapest}

    def _verify(
        self, session: SteppingSession, ids: Tensor, drafts: Drafts, sampler: TokenSampler
    ) -> tuple[Tensor, int]:
        """Check drafts after `ids` [1, len], and forget the rejected ones; without drafts, this is
        a plain step. Return the tokens [1, drafts + 1] and the number of accepted drafts.
        """
        length, drafted = ids.shape[1], torch.cat([ids, drafts.tokens], dim=1)
        logits = session.check(drafted[:, length - 1 :])
        # Penalties depend on the prefix, which differs for each position; prefixes include drafts.
        scores = [
            sampler.scores(drafted[:, : length + i], row) for i, row in enumerate(logits.unbind(1))
        ]
        if sampler.sample:
            tokens, accepted = verify_sampled(drafts, torch.stack(scores, dim=1))
        else:
            picked = [sampler.pick(score) for score in scores]
            checked(picked[0])
            tokens = torch.stack(picked, dim=1)
            accepted = prefix_length(drafts.tokens == tokens[:, :-1])
        if rejected := drafts.tokens.shape[1] - int(accepted):
            session.remove(rejected)
        return tokens, int(accepted)

    def _check_seconds(
        self, session: SteppingSession, ids: Tensor, drafted: int, sampler: TokenSampler
    ) -> float:
        """Return the seconds of a check of drafts, with the removal of those that it rejects."""
        drafts, began = Drafts(ids[:, -1:].expand(-1, drafted)), now(ids.device)
        _, accepted = self._verify(session, ids, drafts, sampler)
        seconds = now(ids.device) - began
        session.remove(1 + accepted)
        return seconds


def _draft_seconds(drafter: NgramDrafter | LayerDrafter, ids: Tensor) -> float:
    began = now(ids.device)
    drafter.propose(ids, 1)
    return now(ids.device) - began


def _costs_key(request: BatchRequest) -> tuple[int, DecodingConfig]:
    return min(MAX_CHECK, request.length - 1), request.decoding


def _count_drafts(tokens: Sequence[int], accepted: int, stops: Collection[int]) -> DraftStats:
    """Count one check, which gains the accepted drafts and one token after them. Drafts after EOS
    are not counted.
    """
    numbered = enumerate(tokens[: accepted + 1], 1)
    until_eos = next((count for count, token in numbered if token in stops), len(tokens))
    gained, drafted = min(until_eos, accepted + 1), min(until_eos, len(tokens) - 1)
    return DraftStats(passes=1, gained=gained, drafted=drafted, accepted=min(gained, accepted))
