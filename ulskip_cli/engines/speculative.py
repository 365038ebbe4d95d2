"""Speculative decoding: drafters guess tokens, and the full model checks them in one pass."""

import functools
import timeit
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy
import torch
from numpy import ndarray
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from ulskip_cli.core.config_schema import AUTO, DecodingConfig
from ulskip_cli.core.files import Table
from ulskip_cli.core.schedule import Layers
from ulskip_cli.engines.base import BatchRequest, DraftStats, Views
from ulskip_cli.engines.loop import now
from ulskip_cli.engines.sampling import (
    DraftHead,
    Drafts,
    TokenSampler,
    prefix_length,
    verify_sampled,
    with_draft_head,
)
from ulskip_cli.engines.torch.decode_steps import EagerSteps
from ulskip_cli.engines.torch.packed_linear import packed
from ulskip_cli.engines.torch.session import ModelSession
from ulskip_cli.strategies.cost import draft_vocab_size

MAX_CHECK = 8  # tokens in a check whose cost is measured, the last accepted token included
MEASUREMENTS = 7  # of each cost; the shortest time counts
CONFIDENCE = 0.6  # probability of a draft; nothing is drafted behind a less probable one
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
        """Return drafts if every sequence has a match, because all sequences of a batch advance
        together.
        """
        rows: list[ndarray] = []
        for row in ids.cpu().numpy():
            rows.append(self._continuation(row, count))
            if not len(rows[-1]):
                return Drafts(ids[:, :0])
        count = min(map(len, rows))
        drafts = numpy.stack([row[:count] for row in rows])
        return Drafts(torch.tensor(drafts, device=ids.device))

    def _continuation(self, ids: ndarray, count: int) -> ndarray:
        first = self.size - 1
        places = (ids[first:-1] == ids[-1]).nonzero()[0] + first
        for back in range(1, min(self.size, len(ids))):
            places = places[ids[places - back] == ids[-1 - back]]
        start = int(places[0]) + 1 if len(places) else len(ids)
        return ids[start : start + count]


class LayerDrafter:
    """Decodes with a view of the model, on the full model's keys and values."""

    most = UNLIMITED

    def __init__(
        self, view: PreTrainedModel, kept: Layers, steps: EagerSteps, sampler: TokenSampler
    ) -> None:
        self.view, self.steps, self.sampler = view, steps, sampler
        self.cache = DynamicCache()  # verification overwrites what drafting wrote
        self.cache.layers = [steps.cache.layers[i] for i in kept]

    def propose(self, ids: Tensor, count: int) -> Drafts:
        """Draft until `count` tokens are drafted or one sequence is unsure."""
        at, drafted = ids.shape[1], list[Tensor]()
        self.steps.cursor.length = at - 1
        while len(drafted) < count:
            logits = self.steps.forward(ids[:, -1:], self.view, self.cache)[:, -1]
            scores = self.sampler.scores(ids, logits)
            tokens = self.sampler.pick(scores, check=False)[:, None]
            drafted.append(scores)
            ids = torch.cat([ids, tokens], dim=1)
            if len(drafted) < count:
                chances = scores.gather(-1, tokens)[:, 0] - scores.logsumexp(dim=-1)
                if float(chances.min().exp()) < CONFIDENCE:
                    break
        return Drafts(ids[:, at:], torch.stack(drafted, dim=1))


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
        return max([0, *allowed], key=self.rate) or len(allowed[:1])

    def update(self, accepted: int, drafted: int) -> None:
        """Count a check. Drafts after the first rejected one are not counted; a plain step counts 0
        of 0.
        """
        if drafted:
            self.accepted = DECAY * self.accepted + accepted
            self.tested = DECAY * self.tested + min(accepted + 1, drafted)
        gained = (1 + MARGIN) * (accepted + 1) - self.cost(drafted)
        self.credit = min(CREDIT, self.credit + gained)


class SpeculativeSession(ModelSession):
    """Lossless speculative decoding: the model checks what n-grams or the view of the first stage
    draft.
    """

    def __init__(self, views: Views) -> None:
        super().__init__(views)
        # The full model with the weights of the linear backend.
        self.decode_model = packed(views.model, views.linear_backend)
        # The views that draft, by the size of their vocabulary; they share packed weights.
        self._drafting: dict[int, PreTrainedModel] = {}
        self._lengths: dict[tuple[int, int, DecodingConfig], list[DraftLength]] = {}

    def drafters(
        self, request: BatchRequest, sampler: TokenSampler
    ) -> Sequence[NgramDrafter | LayerDrafter]:
        """Return the drafters of a batch."""
        ngrams = [NgramDrafter(size) for size in range(LONGEST, 0, -1)]
        if request.decoding.draft == "ngram":
            return ngrams
        text_config = self.views.model.config.get_text_config(decoder=True)
        size = draft_vocab_size(request.decoding, text_config.vocab_size)
        stage = self.views.stages[0]
        if size not in self._drafting:
            self._drafting[size] = packed(
                with_draft_head(stage.view, size), self.views.linear_backend
            )
        view = self._drafting[size]
        head = view.get_output_embeddings()
        if isinstance(head, DraftHead):
            ends = request.input_ids.new_tensor(request.eos_token_ids)
            head.begin(torch.cat([request.input_ids.flatten(), ends]))
        layers = LayerDrafter(view, stage.kept, self.steps, sampler)
        return [layers] if request.decoding.draft == "layers" else [*ngrams, layers]

    def prepare(self, request: BatchRequest) -> float:
        """Measure the costs of drafts and checks once for each batch size; the steps are never
        compiled.
        """
        key, device = _drafting_kind(request), request.input_ids.device
        _, size, decoding = key
        if key in self._lengths or not size:
            return 0.0
        began = now(device)
        self.encode(replace(request, length=size + 1))
        ids = torch.cat([request.input_ids, request.input_ids[:, -1:]], dim=1)
        sampler = TokenSampler(decoding, ids.shape[1], (), 0, device)
        drafters = self.drafters(request, sampler)
        last, count = ids[:, -1:], len(drafters)
        calls: list[Callable[[], object]] = [
            *(functools.partial(drafter.propose, ids, 1) for drafter in drafters),
            *(
                functools.partial(self._verify, ids, Drafts(last.expand(-1, drafted)), sampler)
                for drafted in range(size)
            ),
        ]
        timer = functools.partial(now, device)
        rounds = [
            [timeit.timeit(call, timer=timer, number=1) for call in calls]
            for _ in range(MEASUREMENTS)
        ]
        shortest = list(map(min, zip(*rounds, strict=True)))
        costs = [seconds / shortest[count] for seconds in shortest]  # of drafts, then of checks
        checks = list(accumulate(costs[count:], max))
        self._lengths[key] = [
            DraftLength(decoding.draft_tokens, cost, checks) for cost in costs[:count]
        ]
        self.finish()
        return now(device) - began

    def make_steps(self, request: BatchRequest, cache: DynamicCache) -> EagerSteps:
        """Return steps of the full model on the cache of a batch."""
        mask = request.attention_mask
        return EagerSteps(self.decode_model, cache, mask, request.length, several=True)

    def details(self) -> Table:
        """Return the linear backend and the counts of drafts."""
        return {**super().details(), "drafts": self._stats}

    def decode(self, ids: Tensor, request: BatchRequest, sampler: TokenSampler) -> Iterator[int]:
        """Fill `ids` [batch, prompt_len + length] from the second new token on, with any tokens
        after EOS; yield the number of tokens in the batch after every check.
        """
        prompt_len, total = request.input_ids.shape[1], ids.shape[1]
        at, stops = prompt_len + 1, set(request.stop_token_ids)
        drafters = self.drafters(request, sampler)
        lengths = self._lengths.get(_drafting_kind(request), [])
        rows = torch.arange(len(ids), device=ids.device)  # the sequences in the batch
        current = ids
        running = [token not in stops for token in ids[:, prompt_len].tolist()]
        drafted, checks = 0, list[DraftStats]()
        while at < total and any(running):
            # Without drafts, fewer copies of the cache are worth more than fewer sequences.
            if not all(running) and (drafted or 2 * sum(running) <= len(running)):
                if current is not ids:
                    ids[rows] = current
                alive = rows.new_tensor(running).nonzero()[:, 0]
                rows, running = rows[alive], [True] * len(alive)
                current = ids[rows]
                self.steps.drop_finished(alive)
            drafts, used = Drafts(current[:, :0]), lengths
            choices = [
                (length, length.next(min(drafter.most, total - at - 1)), drafter)
                for length, drafter in zip(lengths, drafters, strict=True)
            ]
            choices.sort(key=lambda choice: choice[0].rate(choice[1]), reverse=True)
            # The drafter with the most expected tokens per second that finds drafts is used.
            for length, count, drafter in choices:
                if count:
                    drafts = drafter.propose(current[:, :at], count)
                if drafts.tokens.shape[1]:
                    used = [length]
                    break
            tokens, accepted = self._verify(current[:, :at], drafts, sampler)
            check, running = _count_drafts(tokens.tolist(), accepted.tolist(), stops, running)
            drafted, gained = drafts.tokens.shape[1], check[0]
            for length in used:
                length.update(gained - 1, drafted)
            checks.append(DraftStats(1, *check, used[0].cost(drafted)))
            current[:, at : at + gained] = tokens[:, :gained]
            at += gained
            yield len(ids) * (at - prompt_len)
        self._stats = sum(checks, DraftStats())
        if current is not ids:
            ids[rows] = current

    def _verify(self, ids: Tensor, drafts: Drafts, sampler: TokenSampler) -> tuple[Tensor, Tensor]:
        """Check drafts after `ids` [batch, len] with the full model; without drafts, this is a
        plain step.
        """
        at = ids.shape[1]
        self.steps.cursor.length = at - 1
        if not drafts.tokens.shape[1] and not sampler.sample:
            logits = self.steps.forward(ids[:, -1:], self.steps.view, self.steps.cache)
            tokens = sampler.pick(sampler.scores(ids, logits[:, -1]))[:, None]
            return tokens, tokens.new_zeros(len(ids))
        drafted = torch.cat([ids, drafts.tokens], dim=1)
        logits = self.steps.forward(drafted[:, at - 1 :], self.steps.view, self.steps.cache)
        # Penalties depend on the prefix, which differs for each position; prefixes include drafts.
        scores = [
            sampler.scores(drafted[:, : at + i], row) for i, row in enumerate(logits.unbind(1))
        ]
        if sampler.sample:
            return verify_sampled(drafts, torch.stack(scores, dim=1))
        picked = [sampler.pick(score, check=i == 0) for i, score in enumerate(scores)]
        chosen = torch.stack(picked, dim=1)
        return chosen, prefix_length(drafts.tokens == chosen[:, :-1])


def _drafting_kind(request: BatchRequest) -> tuple[int, int, DecodingConfig]:
    return len(request.input_ids), min(MAX_CHECK, request.length - 1), request.decoding


def _count_drafts(
    tokens: Sequence[Sequence[int]],
    accepted: Sequence[int],
    stops: Collection[int],
    running: Sequence[bool],
) -> tuple[tuple[int, int, int], list[bool]]:
    """Return the gained, drafted and accepted tokens of one check, and the sequences that go on.

    A batch advances by the gained tokens, the smallest number of accepted drafts plus one. A
    sequence that ends does not limit the others, and its drafts after EOS are not counted.
    """
    most = len(tokens[0])
    # The number of tokens up to and with EOS: 0 if it came before, more than all if none came.
    ends = [
        next((i for i, token in enumerate(row[: count + 1], 1) if token in stops), most + 1) * runs
        for row, count, runs in zip(tokens, accepted, running, strict=True)
    ]
    limits = [count for count, end in zip(accepted, ends, strict=True) if end > most]
    gained = min(limits) + 1 if limits else max(ends)
    drafted = [min(end, most - 1) for end in ends]
    counts = gained, sum(drafted), sum(map(min, accepted, drafted))
    return counts, [end > gained for end in ends]
