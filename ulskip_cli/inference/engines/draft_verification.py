"""Which drafts the full model accepts, and what it says instead of the first that it does not."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class DraftVerification:
    """What checking k drafts of every sequence came to.

    Attributes:
        tokens: [batch, k + 1], valid up to and with the first that was not drafted: `tokens[i, : accepted[i] + 1]`.
        accepted: [batch], from 0 to k.
    """

    tokens: Tensor
    accepted: Tensor


def greedy(drafts: Tensor, scores: Tensor) -> DraftVerification:
    """A draft is accepted where it is what the full model would have chosen.

    Args:
        drafts: [batch, k].
        scores: [batch, k + 1, vocab_size], the full model's at every draft and behind the last.
    """
    tokens = scores.argmax(dim=-1)
    return DraftVerification(tokens, _prefix(drafts == tokens[:, :-1]))


def sampled(drafts: Tensor, draft_scores: Tensor, scores: Tensor) -> DraftVerification:
    """A draft x is accepted with chance min(1, p(x) / q(x)); else max(p - q, 0) is drawn from (Sec. 2.3, arXiv:2211.17192).

    The tokens are then distributed as if p, the full model's distribution, had been drawn from at every position.

    Args:
        drafts: [batch, k], drawn from q.
        draft_scores: [batch, k, vocab_size], of which q is the softmax.
        scores: [batch, k + 1, vocab_size], of which p is the softmax.
    """
    p, q = torch.softmax(scores, dim=-1), torch.softmax(draft_scores, dim=-1)
    p_drafted, q_drafted = (shares.gather(-1, drafts[..., None])[..., 0] for shares in (p[:, :-1], q))
    accepted = _prefix(torch.rand_like(q_drafted) * q_drafted < p_drafted)
    rows = torch.arange(len(drafts), device=drafts.device)
    q = torch.cat([q, torch.zeros_like(p[:, :1])], dim=1)  # nothing was drafted behind the last
    p_next = p[rows, accepted]
    rest = (p_next - q[rows, accepted]).clamp(min=0)
    rest = torch.where(rest.sum(-1, keepdim=True) > 0, rest, p_next)  # p = q but for rounding
    tokens = torch.cat([drafts, drafts.new_empty(len(drafts), 1)], dim=1)
    tokens[rows, accepted] = torch.multinomial(rest, num_samples=1)[:, 0]
    return DraftVerification(tokens, accepted)


def _prefix(right: Tensor) -> Tensor:
    """How many come before the first that is not right, [batch] of [batch, k]."""
    return right.long().cumprod(dim=1).sum(dim=1)
