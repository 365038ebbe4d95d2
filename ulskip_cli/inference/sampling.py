"""Choose the next tokens from logits, greedily or by sampling."""

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
    """Chooses tokens after transformers' own logits processors, in its order; EOS is suppressed before `min_new_tokens`."""

    def __init__(
        self, decoding: DecodingConfig, prompt_len: int, eos_token_ids: Sequence[int], min_new_tokens: int, device: torch.device
    ) -> None:
        self.sample = decoding.do_sample
        self.processors = processors = LogitsProcessorList()
        if decoding.repetition_penalty != 1:
            processors.append(RepetitionPenaltyLogitsProcessor(decoding.repetition_penalty))
        if decoding.no_repeat_ngram_size:
            processors.append(NoRepeatNGramLogitsProcessor(decoding.no_repeat_ngram_size))
        if min_new_tokens and eos_token_ids:
            processors.append(MinNewTokensLengthLogitsProcessor(prompt_len, min_new_tokens, list(eos_token_ids), device=device))
        if self.sample:
            if decoding.temperature != 1:
                processors.append(TemperatureLogitsWarper(decoding.temperature))
            if decoding.top_k:
                processors.append(TopKLogitsWarper(decoding.top_k))
            if decoding.top_p < 1:
                processors.append(TopPLogitsWarper(decoding.top_p))

    def __call__(self, ids: Tensor, logits: Tensor) -> Tensor:
        """Choose the next token of every sequence [batch], after `ids` [batch, len], from logits [batch, vocab_size]."""
        return self.pick(self.scores(ids, logits))

    def scores(self, ids: Tensor, logits: Tensor) -> Tensor:
        """Apply the processors to the logits of the token after `ids`; return [batch, vocab_size] in float32."""
        scores: Tensor = self.processors(ids, logits.float())
        return scores

    def pick(self, scores: Tensor) -> Tensor:
        """Choose one token of every sequence, [batch], from processed scores."""
        if self.sample:
            return torch.multinomial(torch.softmax(scores, dim=-1), num_samples=1)[:, 0]
        return scores.argmax(dim=-1)
