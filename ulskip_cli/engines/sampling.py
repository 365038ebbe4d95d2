"""Choose the next tokens from logits, greedily or by sampling; check drafts; score a part of the
vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
    PreTrainedModel,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from ulskip_cli.core.config_schema import DecodingConfig
from ulskip_cli.core.errors import RunError
from ulskip_cli.inference import shallow_view


class InvalidLogitsError(RunError):
    """The model's logits are not finite, so its answers are meaningless."""

    def __init__(self, got: str) -> None:
        super().__init__(
            f"expected finite logits, got {got}; check the model's weights, or set another"
            " model.dtype or engine"
        )


class TokenSampler:
    """Chooses tokens greedily or by sampling, with transformers' logits processors; suppresses EOS
    before `min_new_tokens`.

    EOS is suppressed here because transformers' processor compares the whole vocabulary in each
    step, which takes longer than the choice.
    """

    def __init__(
        self,
        decoding: DecodingConfig,
        prompt_len: int,
        eos_token_ids: Sequence[int],
        min_new_tokens: int,
        device: torch.device,
    ) -> None:
        self.sample = decoding.do_sample
        self._suppressed = torch.tensor(list(eos_token_ids), dtype=torch.long, device=device)
        self._min_length = prompt_len + min_new_tokens if eos_token_ids else 0
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

    def __call__(self, ids: Tensor, logits: Tensor) -> Tensor:
        """Return the next tokens [batch] after `ids` [batch, len], chosen from logits [batch,
        vocab_size].
        """
        return self.pick(self.scores(ids, logits))

    def scores(self, ids: Tensor, logits: Tensor) -> Tensor:
        """Process the logits [batch, vocab_size] of the token after `ids` [batch, len], partly in
        place; return float32.
        """
        scores = logits.float()
        if ids.shape[1] < self._min_length:
            scores.index_fill_(-1, self._suppressed, float("-inf"))
        processed: Tensor = self.processors(ids, scores)
        return processed

    def pick(self, scores: Tensor, check: bool = True) -> Tensor:
        """Return one token per sequence, [batch], chosen from processed scores [batch, vocab_size].

        On a CPU, raises InvalidLogitsError if the highest score is not finite, unless `check` is
        False, as it is for drafts, which may not be used.
        """
        if self.sample:
            if check and scores.device.type == "cpu" and not scores.amax(-1).isfinite().all():
                raise InvalidLogitsError("NaN or infinity in a decode step")
            return torch.multinomial(torch.softmax(scores, dim=-1), num_samples=1)[:, 0]
        # numpy is several times as fast and also returns the first maximum
        if scores.device.type == "cpu":
            values = scores.numpy()
            best = values.argmax(axis=-1)
            if check and not numpy.isfinite(values[numpy.arange(len(best)), best]).all():
                raise InvalidLogitsError("NaN or infinity in a decode step")
            return torch.from_numpy(best)
        return scores.argmax(dim=-1)


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


class DraftHead(nn.Module):
    """The logits of the first tokens of the vocabulary and of a batch's prompts; all other tokens
    get -inf.

    A step then reads a part of the head's weight. Frequent tokens come first in most vocabularies,
    and answers repeat tokens of their prompt. FR-Spec (arXiv:2502.14856) chooses the part by
    counted frequencies.
    """

    def __init__(self, head: nn.Linear, size: int) -> None:
        super().__init__()
        self.weight, self.size = head.weight, size
        self.first = nn.Linear(head.in_features, size, bias=False, device="meta")
        self.first.weight = nn.Parameter(head.weight.detach()[:size], requires_grad=False)
        self.begin(torch.empty(0, dtype=torch.long, device=head.weight.device))

    def begin(self, ids: Tensor) -> None:
        """Score the tokens `ids` [any shape] too."""
        self._more_ids = torch.unique(ids[ids >= self.size])
        self._more_weight = self.weight.detach()[self._more_ids]

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the logits [..., vocab_size] of `hidden` [..., hidden_size]."""
        logits = hidden.new_full((*hidden.shape[:-1], len(self.weight)), -torch.inf)
        logits[..., : self.size] = self.first(hidden)
        logits[..., self._more_ids] = functional.linear(hidden, self._more_weight)
        return logits


def with_draft_head(view: PreTrainedModel, size: int) -> PreTrainedModel:
    """Return a copy of a view whose head scores the first `size` tokens; return `view` itself if
    its head is no plain layer on the view's device, or has a bias.
    """
    head = view.get_output_embeddings()
    is_plain = type(head) is nn.Linear and head.bias is None
    if not is_plain or size >= head.out_features:
        return view
    return shallow_view.substituted(view, {head: DraftHead(head, size)})
