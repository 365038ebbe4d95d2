"""From logits to tokens, greedy or sampled."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from ulskip_cli.core.config_schema import DecodingConfig


class TokenSampler:
    """By transformers' own processors, in transformers' order."""

    def __init__(
        self, decoding: DecodingConfig, prompt_len: int, ends: Sequence[int], least: int, device: torch.device
    ) -> None:
        """Take what a decoding configuration says.

        Args:
            decoding: how tokens are chosen.
            prompt_len: length of the padded prompts.
            ends: end tokens.
            least: tokens before which no end token is chosen.
            device: of the logits.
        """
        self.sample = decoding.do_sample
        processors = LogitsProcessorList()
        if decoding.repetition_penalty != 1:
            processors.append(RepetitionPenaltyLogitsProcessor(decoding.repetition_penalty))
        if decoding.no_repeat_ngram_size:
            processors.append(NoRepeatNGramLogitsProcessor(decoding.no_repeat_ngram_size))
        if least and ends:
            processors.append(MinNewTokensLengthLogitsProcessor(prompt_len, least, list(ends), device=device))
        if self.sample:
            if decoding.temperature != 1:
                processors.append(TemperatureLogitsWarper(decoding.temperature))
            if decoding.top_k:
                processors.append(TopKLogitsWarper(decoding.top_k))
            if decoding.top_p < 1:
                processors.append(TopPLogitsWarper(decoding.top_p))
        self.processors = processors

    def __call__(self, ids: Tensor, logits: Tensor) -> Tensor:
        """The next token of every sequence, [batch].

        Args:
            ids: [batch, len], prompt and tokens so far.
            logits: [batch, vocab_size].
        """
        return self.pick(self.scores(ids, logits))

    def scores(self, ids: Tensor, logits: Tensor) -> Tensor:
        """What tokens are chosen by, [batch, vocab_size]: the logits of the token after `ids`, processed."""
        scores = logits.float()
        if self.processors:
            scores = self.processors(ids, scores)
        return scores

    def pick(self, scores: Tensor) -> Tensor:
        """A token of every sequence, [batch]."""
        if self.sample:
            return torch.multinomial(torch.softmax(scores, dim=-1), num_samples=1)[:, 0]
        return scores.argmax(dim=-1)
