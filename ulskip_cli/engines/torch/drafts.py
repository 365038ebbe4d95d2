"""Drafts by a copy of the model in 4 bits, which reads a third of the bytes of a step and mostly
chooses the same tokens; and how many of them pay.
"""

import functools
import time
from collections.abc import Callable, Sequence

import numpy
import torch
from torch import Tensor
from transformers import PreTrainedModel

from ulskip_cli.core.answer import common_prefix_length
from ulskip_cli.engines.loop import LookUp
from ulskip_cli.engines.torch import kernels
from ulskip_cli.engines.torch.decode_steps import DecodeSteps, NativeSteps
from ulskip_cli.engines.torch.native_model import NativeBackend, NativeModel, backend_for

MOST_DRAFTS = 7  # the kernels read at most 8 tokens at once
LONG_MATCH = 3  # tokens; their continuation is more often right than the copy
_TIMED_COUNTS = 1, 4, 8  # tokens of the checks that are timed
_MIN_ROUNDS, _MIN_SECONDS = 3, 0.2  # of timing; the least time of each counts
_FADE = 0.98  # of earlier counts at each check
# The acceptance that is assumed first, and again while nothing is drafted, weighs as many drafts.
_ASSUMED, _WEIGHT = 0.85, 2.0


class DraftLength:
    """How many tokens to draft: the number with the most expected tokens a second, which is 0 while
    drafts do not pay. The share of accepted drafts is counted; earlier ones fade.
    """

    def __init__(self, draft_seconds: float, check_seconds: Sequence[float]) -> None:
        """Take the seconds of a draft, and of checks of 1, 2, ... tokens; a step is the first."""
        self._draft_seconds, self._check_seconds = draft_seconds, check_seconds
        self._tried = self._accepted = 0.0

    @property
    def acceptance(self) -> float:
        """The expected share of drafts that are right if those before them are."""
        return (self._accepted + _ASSUMED * _WEIGHT) / (self._tried + _WEIGHT)

    def best(self, max_drafts: int) -> int:
        """Return the best number of drafts, at most `max_drafts`."""
        acceptance = self.acceptance
        tokens, probability = 0.0, 1.0  # expected tokens: arXiv:2211.17192, equation 1
        rates = list[float]()  # tokens a second, by number of drafts
        for count, seconds in enumerate(self._check_seconds[: max_drafts + 1]):
            tokens += probability
            probability *= acceptance
            rates.append(tokens / (count * self._draft_seconds + seconds))
        return rates.index(max(rates))

    def count(self, drafted: int, accepted: int) -> None:
        """Count the drafts of a check; those behind the first wrong one say nothing."""
        self._tried = _FADE * self._tried + min(accepted + 1, drafted)
        self._accepted = _FADE * self._accepted + accepted


def missing_for_copies(model: PreTrainedModel) -> str | None:
    """Return why no copy of a model can draft, or None."""
    backend = backend_for(model)
    if not isinstance(backend, NativeBackend):
        return f"steps outside the native kernels ({backend.reason or 'not on a CPU'})"
    return None if kernels.library().ulskip_has_byte_products() else "a processor without AVX2"


def measure_draft_length(model: NativeModel, copy: NativeModel) -> DraftLength:
    """Time drafts of `copy` and checks of `model` behind a short prompt."""
    longest = max(_TIMED_COUNTS)
    ids = torch.arange(1, longest + 1)[None] % model.vocab_size
    mask, no_tokens = torch.ones_like(ids), ids[0, :0]
    cache = model.encode(ids, mask).cache
    steps = NativeSteps(model, cache, mask, longest + 1)
    drafts = steps.beside(copy, range(len(cache.layers)))

    def draft_seconds() -> float:
        """Return the seconds of one draft."""
        began = time.perf_counter()
        draft_tokens(drafts, ids[:, :1], 1)
        return time.perf_counter() - began

    def check_seconds(count: int) -> float:
        """Return the seconds of a check of `count` tokens."""
        began = time.perf_counter()
        # joined as `Drafting` joins the last token and its drafts
        steps.choose(torch.cat([ids[:, :1], ids[:, 1:count]], dim=1), no_tokens).tolist()
        steps.remove(count)
        return time.perf_counter() - began

    rounds, began = list[list[float]](), time.perf_counter()
    while len(rounds) < _MIN_ROUNDS or time.perf_counter() - began < _MIN_SECONDS:
        # in turns, so that a pause of the machine does not change one of them alone
        rounds.append([draft_seconds(), *map(check_seconds, _TIMED_COUNTS)])
    draft, *checks = map(min, zip(*rounds, strict=True))
    by_count = numpy.interp(range(1, MOST_DRAFTS + 2), _TIMED_COUNTS, checks)
    return DraftLength(draft, by_count.tolist())


def draft_tokens(steps: DecodeSteps, token: Tensor, count: int) -> Tensor:
    """Return the `count` most likely tokens, [count], behind `token` [1, 1], one after the other. A
    check overwrites the keys and values that they add.
    """
    tokens, no_tokens = [token], token[0, :0]
    for _ in range(count):
        # -1, where no logit is finite, is no token that a model can read
        tokens.append(steps.choose(tokens[-1], no_tokens).clamp(min=0))
    steps.remove(count)  # the check adds these positions again
    return torch.cat(tokens[1:], dim=1)[0]


class CopyDrafter:
    """Drafts what followed a long match in the text of one sequence, or else, greedily, what steps
    of a copy of the model choose, which share the KV cache of the model's steps.
    """

    def __init__(self, make_steps: Callable[[], DecodeSteps], length: DraftLength) -> None:
        """Draft by the steps that `make_steps` returns, which are made for the first draft."""
        self._make_steps, self._length, self._look_up = make_steps, length, LookUp()
        self._drafts = torch.empty(0, dtype=torch.long)  # of the copy, for the last check
        self._start = 0  # their place in the text

    def __call__(self, ids: Tensor, max_drafts: int) -> Tensor:
        """Return at most `max_drafts` drafts [count] behind the text `ids` [1, len]."""
        self._count_accepted(ids[0])
        looked_up = self._look_up(ids, max_drafts)
        self._start = ids.shape[1]
        if len(looked_up) >= LONG_MATCH:
            self._drafts = looked_up[:0]  # none of the copy
            return looked_up
        count = self._length.best(max_drafts)
        self._drafts = draft_tokens(self._steps, ids[:, -1:], count) if count else looked_up[:0]
        return self._drafts

    @functools.cached_property
    def _steps(self) -> DecodeSteps:
        return self._make_steps()

    def _count_accepted(self, text: Tensor) -> None:
        """Compare the drafts of the last check with the text that it made."""
        accepted = 0
        if len(self._drafts):
            made = text[self._start : self._start + len(self._drafts)].tolist()
            accepted = common_prefix_length(made, self._drafts.tolist())
        self._length.count(len(self._drafts), accepted)
