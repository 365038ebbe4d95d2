"""Choose the next tokens from logits, greedily or by sampling; and how confident a choice is."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
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
    `banned` tokens.

    EOS is banned here because transformers' processor compares the whole vocabulary in each step,
    which takes longer than the choice.
    """

    def __init__(
        self, decoding: DecodingConfig, banned: Sequence[int], device: torch.device
    ) -> None:
        self.do_sample = decoding.do_sample
        self.banned = torch.tensor(list(banned), dtype=torch.long, device=device)
        self.processors = processors = LogitsProcessorList()
        if decoding.temperature != 1:
            processors.append(TemperatureLogitsWarper(decoding.temperature))
        if decoding.top_k:
            processors.append(TopKLogitsWarper(decoding.top_k))
        if decoding.top_p < 1:
            processors.append(TopPLogitsWarper(decoding.top_p))

    def __call__(self, ids: Tensor, logits: Tensor) -> Tensor:
        """Return the next tokens [batch] after `ids` [batch, len], chosen from logits [batch,
        vocab_size]; raise InvalidLogitsError if none is finite.
        """
        scores = self.scores(ids, logits)
        no_tokens = self.banned[:0]  # banned tokens have the score -inf already
        best = require_finite(most_likely(scores[:, None], no_tokens)[:, 0])
        if not self.do_sample:
            return best
        return torch.multinomial(torch.softmax(scores, dim=-1), num_samples=1)[:, 0]

    def scores(self, ids: Tensor, logits: Tensor) -> Tensor:
        """Return the logits [batch, vocab_size] of the token after `ids` [batch, len] in float32,
        -inf for banned tokens, after temperature, top-k and top-p.
        """
        scores = logits.float().index_fill(-1, self.banned, float("-inf"))
        processed: Tensor = self.processors(ids, scores)
        return processed


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


def require_finite(tokens: Tensor) -> Tensor:
    """Return tokens of `most_likely`; raise InvalidLogitsError if one is -1."""
    if bool((tokens < 0).any()):
        raise InvalidLogitsError("NaN or infinity in a decode step")
    return tokens


def confidence_of(logits: Tensor) -> Tensor:
    """Return the confidence [batch, tokens] of choices: the difference of the two largest
    probabilities of the `logits` [batch, tokens, vocab_size], as in CALM (arXiv:2207.07061).
    """
    best = torch.softmax(logits.float(), dim=-1).topk(2, dim=-1).values
    return best[..., 0] - best[..., 1]
