"""The draft length and the acceptance of drafts in speculative decoding."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ulskip_cli.core.config_schema import AUTO
from ulskip_cli.strategies.cost import drafting_speedup

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
