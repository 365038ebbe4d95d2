"""Choose the next tokens from logits, greedily or by sampling; check drafts; score a part of the
vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from transformers import (
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from ulskip_cli.core.config_schema import DecodingConfig
from ulskip_cli.core.errors import RunError


class InvalidLogitsError(RunError):
    """The model's logits are not finite, so its answers are meaningless."""

    def __init__(self, got: str) -> None:
        super().__init__(
            f"expected finite logits, got {got}; check the model's weights, or set another"
            " model.dtype or engine"
        )


class TokenSampler:
    """Chooses tokens greedily or by sampling, with transformers' logits processors; never chooses
    `suppressed` tokens.

    EOS is suppressed here because transformers' processor compares the whole vocabulary in each
    step, which takes longer than the choice.
    """

    def __init__(
        self, decoding: DecodingConfig, suppressed: Sequence[int], device: torch.device
    ) -> None:
        self.sample = decoding.do_sample
        self.suppressed = torch.tensor(list(suppressed), dtype=torch.long, device=device)
        self.processors = processors = LogitsProcessorList()
        if decoding.repetition_penalty != 1:
            processors.append(RepetitionPenaltyLogitsProcessor(decoding.repetition_penalty))
        if decoding.no_repeat_ngram_size:
            processors.append(NoRepeatNGramLogitsProcessor(decoding.no_repeat_ngram_size))
        if self.sample:
            if decoding.temperature != 1:
                processors.append(TemperatureLogitsWarper(decoding.temperature))
            if decoding.top_k:
                processors.append(TopKLogitsWarper(decoding.top_k))
            if decoding.top_p < 1:
                processors.append(TopPLogitsWarper(decoding.top_p))

    @property
    def is_greedy(self) -> bool:
        """True if each token is the most likely one, whatever tokens are before it."""
        return not self.sample and not self.processors

    def __call__(self, ids: Tensor, logits: Tensor) -> Tensor:
        """Return the next tokens [batch] after `ids` [batch, len], chosen from logits [batch,
        vocab_size]; raise InvalidLogitsError if none is finite.
        """
        return checked(self.pick(self.scores(ids, logits)))

    def scores(self, ids: Tensor, logits: Tensor) -> Tensor:
        """Process the logits [batch, vocab_size] of the token after `ids` [batch, len] in
        float32.
        """
        scores = logits.float().index_fill(-1, self.suppressed, float("-inf"))
        processed: Tensor = self.processors(ids, scores)
        return processed

    def pick(self, scores: Tensor) -> Tensor:
        """Return a token [batch] of processed scores [batch, vocab_size], -1 if none is finite."""
        best = most_likely(scores[:, None], self.suppressed[:0])[:, 0]
        if not self.sample or bool((best < 0).any()):
            return best
        return torch.multinomial(torch.softmax(scores, dim=-1), num_samples=1)[:, 0]


def most_likely(logits: Tensor, banned: Tensor) -> Tensor:
    """Return the token [batch, count] with the highest of logits [batch, count, vocab_size], the
    first one of equals; -1 if that is not finite. Tokens in `banned` are not chosen.
    """
    scores = logits.float().index_fill(-1, banned, float("-inf"))
    if scores.device.type != "cpu":
        highest, best = scores.max(dim=-1)
    else:  # numpy is several times as fast and also returns the first maximum
        best = torch.from_numpy(scores.numpy().argmax(axis=-1))
        highest = scores.gather(-1, best[..., None])[..., 0]
    return best.masked_fill(~highest.isfinite(), -1)


def checked(tokens: Tensor) -> Tensor:
    """Return chosen tokens; raise InvalidLogitsError if one is -1."""
    if bool((tokens < 0).any()):
        raise InvalidLogitsError("NaN or infinity in a decode step")
    return tokens


@dataclass(frozen=True)
class Drafts:
    """The drafts of one check, equally many for each sequence."""

    tokens: Tensor  # [batch, k]
    # [batch, k, vocab_size], whose softmax drew the tokens; None: they were certain
    scores: Tensor | None = None


def verify_sampled(drafts: Drafts, scores: Tensor) -> tuple[Tensor, Tensor]:
    """Accept a draft x with probability min(1, p(x) / q(x)), else draw from max(p - q, 0) (Sec.
    2.3, arXiv:2211.17192).

    Return the tokens [batch, k + 1], valid up to the one after the accepted drafts, and the numbers
    of accepted drafts [batch].

    The tokens are distributed as if drawn from p, the distribution of the full model: p is the
    softmax of `scores` [batch, k + 1, vocab_size]. The drafts were drawn from q, the softmax of
    their scores; a certain draft has q = 1.
    """
    ids, p = drafts.tokens, torch.softmax(scores, dim=-1)
    if drafts.scores is None:
        q = functional.one_hot(ids, p.shape[-1]).to(p)
    else:
        q = torch.softmax(drafts.scores, dim=-1)
    p_drafted, q_drafted = (shares.gather(-1, ids[..., None])[..., 0] for shares in (p[:, :-1], q))
    accepted = prefix_length(torch.rand_like(q_drafted) * q_drafted < p_drafted)
    rows = torch.arange(len(ids), device=ids.device)
    q = torch.cat([q, torch.zeros_like(p[:, :1])], dim=1)  # no draft follows the last one
    p_next = p[rows, accepted]
    rest = (p_next - q[rows, accepted]).clamp(min=0)
    rest = torch.where(rest.sum(-1, keepdim=True) > 0, rest, p_next)  # p = q up to rounding
    tokens = torch.cat([ids, ids.new_empty(len(ids), 1)], dim=1)
    tokens[rows, accepted] = torch.multinomial(rest, num_samples=1)[:, 0]
    return tokens, accepted


def prefix_length(flags: Tensor) -> Tensor:
    """Count the true flags before the first false flag of each row: [batch, k] to [batch]."""
    return flags.long().cumprod(dim=1).sum(dim=1)
