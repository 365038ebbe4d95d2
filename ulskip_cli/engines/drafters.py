"""Drafters of speculative decoding: the kept layers, and n-grams that occurred earlier in the text."""

from dataclasses import dataclass
from typing import Protocol

import numpy
import torch
from numpy import ndarray
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from ulskip_cli.engines.sampling import TokenSampler
from ulskip_cli.engines.torch.decode_steps import EagerSteps
from ulskip_cli.inference import shallow_view

CONFIDENCE = 0.6  # probability of a draft; nothing is drafted behind a less probable one
SHORTEST, LONGEST = 2, 3  # tokens that are looked up; a single one occurs too often to be evidence
MAX_MISSES, PAUSE = 2, 4  # fruitless look-ups in a row, and the tokens without look-ups that follow


@dataclass(frozen=True)
class Drafts:
    """The drafts of one check, equally many for each sequence."""

    tokens: Tensor  # [batch, k]
    scores: Tensor | None = None  # [batch, k, vocab_size], whose softmax drew the tokens; None: they were certain


class Drafter(Protocol):
    """Something that guesses the next tokens of a batch."""

    def propose(self, ids: Tensor, count: int) -> Drafts:
        """Return at most `count` drafts after `ids` [batch, len], and none if there is no good guess."""


class NgramDrafter:
    """Looks the last tokens up in the prompt and the answer; their first continuation is the draft."""

    def __init__(self) -> None:
        self._misses = self._drafted_at = self._resume_at = 0

    def propose(self, ids: Tensor, count: int) -> Drafts:
        """Return drafts if the last tokens of every sequence occurred before, because a batch advances together."""
        at = ids.shape[1]
        if self._drafted_at:  # one more token since then: none of the drafts was accepted
            self._misses = self._misses + 1 if at == self._drafted_at + 1 else 0
        self._drafted_at = 0
        if self._misses == MAX_MISSES:
            self._misses, self._resume_at = 0, at + PAUSE
        if at < self._resume_at:
            return Drafts(ids[:, :0])
        rows = list[ndarray]()
        for row in ids.cpu().numpy():
            rows.append(_continuation(row, count))
            count = len(rows[-1])
            if not count:
                return Drafts(ids[:, :0])
        self._drafted_at = at
        return Drafts(torch.tensor(numpy.stack([row[:count] for row in rows]), device=ids.device))


def _continuation(ids: ndarray, count: int) -> ndarray:
    """Return up to `count` tokens that followed the last tokens when they occurred first; as many as possible must agree."""
    places, start = (ids[:-1] == ids[-1]).nonzero()[0], len(ids)
    for size in range(2, LONGEST + 1):
        places = places[places >= size - 1]
        places = places[ids[places - size + 1] == ids[-size]] if len(places) else places
        if not len(places):
            break
        if size >= SHORTEST:
            start = int(places[0]) + 1
    return ids[start : start + count]


class LayerDrafter:
    """Decodes with a view of the model, on the full model's keys and values."""

    def __init__(self, view: PreTrainedModel, kept: tuple[int, ...], steps: EagerSteps, sampler: TokenSampler) -> None:
        self.view, self.steps, self.sampler = view, steps, sampler
        self.cache = DynamicCache()
        self.cache.layers = [steps.cache.layers[i] for i in kept]  # verification overwrites what drafting wrote

    def propose(self, ids: Tensor, count: int) -> Drafts:
        """Draft until `count` tokens are drafted or one sequence is unsure."""
        at, drafted = ids.shape[1], list[Tensor]()
        self.steps.rewind(at - 1)
        for _ in range(count):
            drafted.append(self.sampler.scores(ids, self.steps.forward(ids[:, -1:], self.view, self.cache)[:, -1]))
            ids = torch.cat([ids, self.sampler.pick(drafted[-1])[:, None]], dim=1)
            if len(drafted) < count and _least_probability(drafted[-1], ids[:, -1:]) < CONFIDENCE:
                break
        return Drafts(ids[:, at:], torch.stack(drafted, dim=1))


def _least_probability(scores: Tensor, tokens: Tensor) -> float:
    return float((scores.gather(-1, tokens)[:, 0] - scores.logsumexp(dim=-1)).min().exp())


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
