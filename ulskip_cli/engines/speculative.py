"""Speculative decoding: a drafter guesses tokens, and the full model, in any engine whose session
defines `check`, checks them in one pass. Greedy answers stay the same.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

import numpy
import torch
from torch import Tensor

from ulskip_cli.engines.base import BatchRequest, DraftStats
from ulskip_cli.engines.sampling import checked

if TYPE_CHECKING:
    from ulskip_cli.engines.loop import SteppingSession

# A single token occurs again by chance, so that its continuation is rejected more often than its
# check gains time.
SHORTEST_MATCH = 2


class Drafter(Protocol):
    """Guesses how a text goes on."""

    def propose(self, ids: Tensor, most: int) -> Tensor:
        """Return at most `most` drafts, [count], after `ids` [1, len]."""


class LookUp:
    """Drafts what followed the longest match: the most tokens at the end of the text that occur in
    it earlier.

    A match of m tokens allows m drafts, as in the suffix decoding of ArcticInference (MAX_SPEC,
    arXiv:2411.04975): the longer the match, the likelier its continuation.
    """

    def propose(self, ids: Tensor, most: int) -> Tensor:
        """Return at most `most` drafts, [count], after `ids` [1, len]; none without a match."""
        text, length = ids[0].cpu().numpy(), 0
        places = numpy.arange(len(text) - 1)  # where matches of `length` tokens end
        while length < most:
            longer = places[places >= length]
            longer = longer[text[longer - length] == text[-1 - length]]
            if not len(longer):
                break
            places, length = longer, length + 1
        if length < SHORTEST_MATCH:
            return ids[0, :0]
        start = int(places[0]) + 1
        return ids[0, start : start + length]


class Drafting:
    """Greedy decoding of one sequence with drafts, which a session checks."""

    def __init__(self, session: "SteppingSession", request: BatchRequest) -> None:
        self.session, self.drafter = session, session.drafter(request)
        self.limit, self.prompt_len = request.decoding.draft_tokens, request.input_ids.shape[1]
        self.request, self.stops = request, request.stop_token_ids
        banned = request.eos_token_ids if request.forced else ()
        self.banned = request.input_ids.new_tensor(list(banned))
        self.stats = DraftStats()

    def decode(self, ids: Tensor) -> Iterator[int]:
        """Fill `ids` [1, prompt_len + length] from the second new token on, until EOS; yield the
        number of new tokens after every check.
        """
        end, total = self.prompt_len + 1, ids.shape[1]
        while end < total and not self._ends(ids[0, self.prompt_len : end].tolist()):
            tokens = self._check(ids[:, :end], total - end)
            ids[0, end : end + len(tokens)] = tokens
            end += len(tokens)
            yield end - self.prompt_len

    def _ends(self, answer: list[int]) -> bool:
        return answer[-1] in self.stops or self.request.is_stopped(answer)

    def _check(self, ids: Tensor, room: int) -> Tensor:
        """Draft tokens after `ids` [1, len], and let the full model read them in one pass; return
        the next tokens, [count], at most `room`.

        The model's choices behind accepted drafts are those of plain steps. So the first choice
        that differs from its draft counts, too, and only those after it are wrong.
        """
        most = min(self.limit, room - 1)  # a check gives one token more
        drafts = self.drafter.propose(ids, most) if most else ids[0, :0]
        chosen = self.session.choose(torch.cat([ids[0, -1:], drafts])[None], self.banned)[0]
        accepted = [*(chosen[:-1] == drafts).tolist(), False].index(False)
        if rejected := len(drafts) - accepted:
            self.session.remove(rejected)
        tokens = checked(chosen[: accepted + 1])
        ends = [end for end, token in enumerate(tokens.tolist(), 1) if token in self.stops]
        tokens = tokens[: ends[0]] if ends else tokens
        gained = len(tokens)
        self.stats += DraftStats(1, gained, len(drafts), min(accepted, gained))
        return tokens
